"""One replica, and the cases that it answers, as often as asked."""

from __future__ import annotations

import time
from collections.abc import Sequence

from caraserve_cli.bench.bench_replica import BenchReplica
from caraserve_cli.bench.engine_case import EngineCase
from caraserve_cli.bench.engine_result import CaseRun
from caraserve_cli.bench.synthetic import adapters_of, make_requests
from caraserve_cli.core import Completion, Failure, Request
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.replica import Outcome
from caraserve_cli.fleet.surroundings import Surroundings


class CaseRunner:
    """Starts a replica.

    Args:
        surroundings: with every adapter in host memory.
        options: of the replica.
        adapters: names of all that a case may have brought to the device.
    """

    def __init__(self, surroundings: Surroundings, options: ReplicaOptions, adapters: Sequence[str]) -> None:
        self._replica = BenchReplica(surroundings, options, adapters)
        self._num_runs = 0

    def close(self) -> None:
        """End the replica."""
        self._replica.close()

    def answer(self, case: EngineCase) -> CaseRun:
        """Bring the device's adapter pool into the case's state, then answer all requests on the clock."""
        self._prepare_pool(case)
        self._num_runs += 1
        requests = make_requests(case, self._num_runs, self._replica.vocab_size)
        self._replica.settle()
        started_s = time.perf_counter()
        outcomes = self._replica.answer(requests)
        seconds = time.perf_counter() - started_s
        return CaseRun(
            seconds=seconds,
            num_output_tokens=sum(len(each.token_ids) for each in outcomes if isinstance(each, Completion)),
            steps=tuple(self._replica.steps),
            undone=find_undone(requests, outcomes),
        )

    def _prepare_pool(self, case: EngineCase) -> None:
        """The case's adapters on the device and no others; if they do not fit, or are to be cold, none."""
        wanted = {adapter.name for adapter in adapters_of(case)}
        if case.cold or not self._replica.fits(wanted):
            wanted = set()
        self._replica.keep_adapters(wanted)
        self._replica.load_adapters(wanted)


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
