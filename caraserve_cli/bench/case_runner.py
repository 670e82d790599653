"""One replica, and the cases that it answers, as often as asked."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence

import torch

from caraserve_cli.bench.engine_case import EngineCase
from caraserve_cli.bench.engine_result import CaseRun
from caraserve_cli.bench.synthetic import adapters_of, make_requests
from caraserve_cli.core import Completion, Failure, Request, SamplingParams
from caraserve_cli.engine.extents import aligned_bytes
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.local import LocalReplica, Surroundings
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.replica import Outcome
from caraserve_cli.job.clock import RunClock


class _StepLog:
    """An event sink that keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[StepRecord] = []

    def on_step(self, record: StepRecord) -> None:
        self.steps.append(record)


class CaseRunner:
    """Starts a replica.

    Args:
        surroundings: with every adapter in host memory.
        options: of the replica.
        adapters: names of all that a case may have brought to the device.
    """

    def __init__(self, surroundings: Surroundings, options: ReplicaOptions, adapters: Sequence[str]) -> None:
        self._surroundings = surroundings
        self._adapters = adapters
        self._log = _StepLog()
        clock = RunClock()
        self._replica = LocalReplica(surroundings, options, clock, self._log)
        _wait_for(surroundings.device)
        clock.start()
        self._num_runs = 0

    def answer(self, case: EngineCase) -> CaseRun:
        """Bring the device's adapter pool into the case's state, then answer all requests on the clock."""
        self._prepare_pool(case)
        self._num_runs += 1
        vocab_size = self._surroundings.base.config.shape.vocab_size
        requests = make_requests(case, self._num_runs, vocab_size)
        self._log.steps = []
        gc.collect()  # what was left before is not paid for on the clock
        _wait_for(self._surroundings.device)
        started_s = time.perf_counter()
        outcomes = self._answer(requests)
        seconds = time.perf_counter() - started_s
        return CaseRun(
            seconds=seconds,
            num_output_tokens=sum(len(each.token_ids) for each in outcomes if isinstance(each, Completion)),
            steps=tuple(self._log.steps),
            undone=find_undone(requests, outcomes),
        )

    def _prepare_pool(self, case: EngineCase) -> None:
        """The case's adapters on the device and no others; if they do not fit, or are to be cold, none."""
        wanted = {adapter.name for adapter in adapters_of(case)}
        if case.cold or not self._fit(wanted):
            wanted = set()
        self._replica.evict_adapters(name for name in self._adapters if name not in wanted)
        sampling = SamplingParams(max_tokens=1, ignore_eos=True)
        self._answer(
            [
                Request(id=name, line=1, prompt_token_ids=(0,), adapter=name, sampling=sampling)
                for name in sorted(wanted)
            ]
        )

    def _fit(self, adapters: set[str]) -> bool:
        config = self._surroundings.engine_config
        infos = [self._surroundings.host_store.info(name) for name in adapters]
        num_bytes = sum(aligned_bytes(info.num_bytes) for info in infos)
        return num_bytes <= config.adapter_memory_bytes and len(infos) <= config.max_resident_adapters

    def _answer(self, requests: Sequence[Request]) -> list[Outcome]:
        self._replica.submit(requests)
        outcomes: list[Outcome] = []
        while self._replica.num_unfinished:
            outcomes += self._replica.poll()
        return outcomes


def find_undone(requests: Sequence[Request], outcomes: Sequence[Outcome]) -> str | None:
    """What keeps the outcomes from being all the work that the requests ask for; None if nothing does."""
    completions = {each.request.id: each for each in outcomes if isinstance(each, Completion)}
    failures = [each for each in outcomes if isinstance(each, Failure)]
    num_short = num_cached = 0
    for request in requests:
        completion = completions.get(request.id)
        if completion is None or len(completion.token_ids) != request.sampling.max_tokens:
            num_short += 1
        # A preempted request finds its own blocks again.
        elif completion.num_cached_tokens and not completion.num_preemptions:
            num_cached += 1
    if failures:
        return f"{len(failures)} of {len(requests)} requests failed, the first because {failures[0].message}"
    if num_short or len(outcomes) != len(requests):
        return f"{num_short} of {len(requests)} requests have no answer of full length"
    if num_cached:
        return f"{num_cached} of {len(requests)} prompts were found in the prefix cache"
    return None


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
