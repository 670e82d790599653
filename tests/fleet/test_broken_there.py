"""Adapters whose files one machine of a fleet cannot read: real engines, in this process, behind a driver."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from caraserve_cli.core import AdapterInfo, Completion, Request, SamplingParams
from caraserve_cli.fleet.crew import CrewEvent, Told
from caraserve_cli.fleet.fleet import Fleet
from caraserve_cli.fleet.host import share_out
from caraserve_cli.fleet.host_clock import monotonic_ms
from caraserve_cli.fleet.hosted_replica import HostedReplica
from caraserve_cli.fleet.local import NoEvents
from caraserve_cli.fleet.messages import Outcome, Refusal, ReplicaDescription
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.placement.catalogue import placement
from tests.adapters.peft_variants import VARIANTS, write_variant
from tests.fleet.families import write_base

WAIT_S = 60.0
NO_HEADER, NO_END = (variant.name for variant in VARIANTS[:2])


class HostedCrew:
    """See `Crew`: replicas that would be in processes of their own, here in one. None dies."""

    def __init__(self, options: Sequence[ReplicaOptions]) -> None:
        self.names = [f"replica-{number}" for number in range(len(options))]
        self._hosted = [HostedReplica() for _ in options]
        self._origin_ms = monotonic_ms()
        self.descriptions: list[ReplicaDescription] = []
        cores = sorted(os.sched_getaffinity(0))
        for number, (hosted, each) in enumerate(zip(self._hosted, options, strict=True)):
            started = hosted.start(each, share_out(cores, 2 * 10**9, number, len(options), 1))
            assert not isinstance(started, Refusal)
            self.descriptions.append(started)

    def submit(self, replica: int, requests: Sequence[Request]) -> None:
        self._hosted[replica].submit(requests, self._origin_ms)

    def wait(self, most_wait_s: float) -> list[CrewEvent]:
        return [Told(replica, hosted.poll(0.01)) for replica, hosted in enumerate(self._hosted)]

    def replace(self, replica: int) -> None:
        raise AssertionError(f"replica {replica} has not died")

    def close(self) -> None:
        for hosted in self._hosted:
            hosted.close()


def describe(request: Request) -> AdapterInfo | None:
    if request.adapter is None:
        return None
    return AdapterInfo(name=request.adapter, lora_rank=8, num_bytes=10**5, identity=b"")


def test_what_one_machine_cannot_read_is_answered_by_another(tmp_path: Path) -> None:
    load = write_base("llama2", tmp_path / "base")
    for seed, variant in enumerate(VARIANTS[:2]):
        write_variant(tmp_path / "well", variant, load, seed=seed)
    shutil.copytree(tmp_path / "well", tmp_path / "broken")
    for name, num_bytes in ((NO_HEADER, 4), (NO_END, -100)):
        (weights,) = (tmp_path / "broken" / name).glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:num_bytes])
    options = [
        ReplicaOptions(
            base=str(tmp_path / "base"), adapter_roots=(tmp_path / folder,), device="cpu", dtype="float32"
        )
        for folder in ("broken", "well")
    ]
    notes: list[str] = []
    crew = HostedCrew(options)
    clock_ms = monotonic_ms
    fleet = Fleet(crew, placement("most-idle"), describe, clock_ms, NoEvents(), notes.append)
    adapters = (NO_HEADER, NO_END, None)
    requests = [
        Request(
            id=f"r{number}",
            line=number,
            prompt_token_ids=(5, 6, 7 + number),
            adapter=adapters[number % 3],
            sampling=SamplingParams(max_tokens=4, ignore_eos=True),
        )
        for number in range(60)
    ]
    fleet.submit(requests)
    outcomes: list[Outcome] = []
    until_s = time.monotonic() + WAIT_S
    while fleet.num_unfinished and time.monotonic() < until_s:
        outcomes += fleet.poll(0.01)
    fleet.close()
    assert sorted(outcome.request.id for outcome in outcomes) == sorted(request.id for request in requests)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Completion)]
    assert len(answers) == len(requests)
    by_adapter = {
        adapter: {a.replica for a in answers if a.request.adapter == adapter} for adapter in adapters
    }
    assert by_adapter[NO_HEADER] == by_adapter[NO_END] == {"replica-1"}
    assert "replica-0" in by_adapter[None], "it answers what it can"
    assert sorted(note.partition(",")[0] for note in notes) == sorted(
        f"replica-0 refuses adapter '{name}'" for name in (NO_HEADER, NO_END)
    )
    assert fleet.account.placed_again >= 2
