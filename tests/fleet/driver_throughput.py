"""How many requests a second the driver of a fleet handles, where replicas answer at once.

`python -m tests.fleet.driver_throughput [REPLICAS] [PLACEMENT]` prints three figures: the driver alone, over
replicas in its own process; over Ray actors; and a whole run over replicas in its own process, with reading,
checking and tokenising rows of the sample's base, and writing answers.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.core import AdapterInfo, Request
from caraserve_cli.errors import CaraServeError
from caraserve_cli.events import EventSink
from caraserve_cli.fleet.account import FleetAccount
from caraserve_cli.fleet.crew import Crew
from caraserve_cli.fleet.fleet import Fleet
from caraserve_cli.fleet.local import NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.replica import Replica
from caraserve_cli.job import run as job_run
from caraserve_cli.job.options import RunOptions
from caraserve_cli.job.run import LOOKAHEAD_REQUESTS, Run
from caraserve_cli.job.stop_request import StopRequest
from caraserve_cli.model.resolve import resolve_base
from caraserve_cli.model.tokenizer import load_tokenizer
from caraserve_cli.placement.catalogue import DEFAULT_PLACEMENT, placement
from tests.cli.command import SAMPLE, write_rows
from tests.fleet.echo_crew import EchoCrew, describe_adapter, description, make_request
from tests.fleet.echo_hosted import MAX_RUNNING, EchoHosted

NUM_REQUESTS = 30_000
NUM_ADAPTERS = 200
PROMPT_TOKENS = 128


def measure(crew: Crew, name: str, clock_ms: Callable[[], float]) -> float:
    """Requests a second through a fleet, its window kept full as a run does."""
    fleet = Fleet(crew, placement(name), describe_adapter, clock_ms, NoEvents(), print)
    window = len(crew.names) * MAX_RUNNING + LOOKAHEAD_REQUESTS
    requests = iter(
        [
            make_request(number, str(number % NUM_ADAPTERS), prompt_tokens=PROMPT_TOKENS)
            for number in range(NUM_REQUESTS)
        ]
    )
    num_answered = 0
    started_s = time.perf_counter()
    while num_answered < NUM_REQUESTS:
        fleet.submit(list(islice(requests, window - fleet.num_unfinished)))
        num_answered += len(fleet.poll(0.01))
    return NUM_REQUESTS / (time.perf_counter() - started_s)


def make_echoes(num_replicas: int) -> EchoCrew:
    return EchoCrew([description(max_running=MAX_RUNNING, kv_tokens=10**6)] * num_replicas)


def measure_in_process(num_replicas: int, name: str) -> float:
    return measure(make_echoes(num_replicas), name, lambda: time.perf_counter() * 1000)


def measure_over_ray(num_replicas: int, name: str) -> float:
    from caraserve_cli.fleet.ray_cluster import RayCluster

    with RayCluster(None, num_replicas):
        from caraserve_cli.fleet.ray_crew import RayCrew

        def clock_ms() -> float:
            return time.perf_counter() * 1000

        crew = RayCrew(
            ReplicaOptions(base=""),
            num_replicas,
            is_on_gpu=False,
            library=AdapterLibrary({}),
            clock_ms=clock_ms,
            hosted=EchoHosted,
        )
        return measure(crew, name, clock_ms)


class EchoSource:
    """See `ReplicaSource`: a fleet of echoes for the sample's base."""

    notes = ()
    dtype = torch.float32
    device_description = memory_description = "echoes"
    account: FleetAccount | None = None

    def __init__(self, num_replicas: int, name: str) -> None:
        self._num_replicas, self._name = num_replicas, name
        self.base = resolve_base(str(SAMPLE / "base"), "checkpoint")
        self.tokenizer = load_tokenizer(SAMPLE / "base")
        self.library = AdapterLibrary.scan([SAMPLE / "adapters"])
        self.most_running = num_replicas * MAX_RUNNING
        self._infos = {
            adapter: AdapterInfo(name=adapter, lora_rank=8, num_bytes=10**6, identity=b"")
            for adapter in self.library.names
        }

    def start(self, clock_ms: Callable[[], float], events: EventSink) -> Replica:
        def describe(request: Request) -> AdapterInfo | None:
            return None if request.adapter is None else self._infos[request.adapter]

        crew = make_echoes(self._num_replicas)
        return Fleet(crew, placement(self._name), describe, clock_ms, events, print)

    def close(self) -> None:
        pass


def measure_run(num_replicas: int, name: str) -> float:
    """Requests a second of a whole run, from its report."""
    source = EchoSource(num_replicas, name)
    job_run.open_replicas = lambda options, on_note: source
    names = source.library.names
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            {"id": f"r{number}", "prompt": "Input: abcdefgh\nOutput: ", "adapter": names[number % len(names)]}
            for number in range(NUM_REQUESTS)
        ]
        requests = write_rows(Path(folder, "requests.jsonl"), rows)
        options = RunOptions(
            requests=str(requests),
            out=Path(folder, "out"),
            replica=ReplicaOptions(base=str(SAMPLE / "base"), adapter_roots=(SAMPLE / "adapters",)),
        )
        result = Run(options, lambda state: None, lambda note: None, StopRequest()).execute()
        throughput = result.report["throughput"]
        assert isinstance(throughput, dict)
        return float(throughput["requests_per_s"])


def main() -> None:
    """Measure each several times, and print them as they come."""
    num_replicas = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    name = sys.argv[2] if len(sys.argv) > 2 else DEFAULT_PLACEMENT
    ways = {"driver alone": measure_in_process, "over Ray": measure_over_ray, "whole run": measure_run}
    for what, way in ways.items():
        per_s = [way(num_replicas, name) for _ in range(3)]
        figures = ", ".join(f"{each:,.0f}" for each in per_s)
        print(f"{what}, {num_replicas} replicas, {name}: {figures} requests/s")  # noqa: T201


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        main()
    except CaraServeError as error:
        sys.exit(str(error))
