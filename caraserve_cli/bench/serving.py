"""One serving benchmark from recipe to result. Knows no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing

from caraserve_cli.bench.bench_replica import BenchReplica
from caraserve_cli.bench.case_runner import find_undone
from caraserve_cli.bench.cold_starts import CACHED, check_replica, keeps_adapters, rotated
from caraserve_cli.bench.engine_runs import run_replicas
from caraserve_cli.bench.serving_recipe import ServingCase, ServingRecipe
from caraserve_cli.bench.serving_requests import make_arrivals
from caraserve_cli.bench.serving_result import CaseRuns, ServingResult, judge_serving
from caraserve_cli.bench.serving_run import ServingRun
from caraserve_cli.bench.synthetic import adapters_of
from caraserve_cli.core import ColdStart, Completion
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.surroundings import Surroundings

# Told after each run: the case, the strategy, the repeat (from 1; 0 for a warm-up), and the run.
OnServingRun = Callable[[str, str, int, ServingRun], None]


def run_serving(recipe: ServingRecipe, on_run: OnServingRun) -> ServingResult:
    """Measure every case; those with the same options on one replica, one case after the other.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: the base cannot be had, or a step does not fit the device's memory.
    """
    for case in recipe.cases:
        where = f"recipe '{recipe.name}', case '{case.name}'"
        check_replica(where, LocalReplica, case.strategies, [case.link_gbps])

    def run(
        around: Surroundings, cases: Sequence[ServingCase], adapters: Sequence[str]
    ) -> tuple[float, dict[str, CaseRuns]]:
        started_s = time.perf_counter()
        with closing(BenchReplica(around, cases[0].options, adapters)) as replica:
            ready_s = time.perf_counter() - started_s
            for case in cases:
                _check_fits(recipe, case, replica)
            return ready_s, {case.name: _run_case(recipe, case, replica, on_run) for case in cases}

    done = run_replicas(recipe, run)
    cases = tuple(judge_serving(case, done.runs[case.name]) for case in recipe.cases)
    return ServingResult(facts=done.facts, cases=cases)


def _check_fits(recipe: ServingRecipe, case: ServingCase, replica: BenchReplica) -> None:
    if CACHED in case.strategies and not replica.fits({each.name for each in adapters_of(case)}):
        raise OptionError(
            f"recipe '{recipe.name}', case '{case.name}': 'adapters': with '{CACHED}' all of them are on the "
            "device, and they do not fit there; give more 'adapter_memory', or leave that strategy out"
        )


def _run_case(
    recipe: ServingRecipe, case: ServingCase, replica: BenchReplica, on_run: OnServingRun
) -> CaseRuns:
    """Warm-ups and saturation first, with all requests there at once: they take as long as they must."""
    for warmup in range(1, recipe.warmups + 1):
        for strategy in case.strategies:
            on_run(case.name, strategy, 0, _run(replica, case, strategy, -warmup, rate_per_s=None))
    saturation_per_s = None
    if CACHED in case.strategies:
        burst = _run(replica, case, CACHED, 0, rate_per_s=None)
        saturation_per_s = burst.requests_per_s
        on_run(case.name, f"{CACHED}, all at once", 0, burst)
    rate_per_s = case.rate_per_s or (case.load or 1.0) * (saturation_per_s or 1.0)
    runs: dict[str, list[ServingRun]] = {strategy: [] for strategy in case.strategies}
    for repeat in range(1, recipe.repeats + 1):
        for strategy in rotated(case.strategies, repeat - 1):
            run = _run(replica, case, strategy, repeat, rate_per_s)
            on_run(case.name, strategy, repeat, run)
            runs[strategy].append(run)
    return CaseRuns(rate_per_s=rate_per_s, saturation_per_s=saturation_per_s, runs=runs)


def _run(
    replica: BenchReplica, case: ServingCase, strategy: str, repeat: int, rate_per_s: float | None
) -> ServingRun:
    """One repeat; without a rate all requests are there at once."""
    requests = make_arrivals(case, repeat, rate_per_s, replica.vocab_size)
    replica.set_out(strategy, {each.name for each in adapters_of(case)}, case.link_gbps)
    served = replica.answer_in_time(requests, keeps_adapters=keeps_adapters(strategy))
    completions = [each for each in served.outcomes if isinstance(each, Completion)]
    undone = find_undone(requests, served.outcomes)
    num_loaded = sum(each.cold_start is not ColdStart.RESIDENT for each in completions)
    if undone is None and strategy == CACHED and num_loaded:
        undone = f"{num_loaded} of {len(requests)} adapters of '{CACHED}' were not on the device"
    return ServingRun(
        started_ms=served.started_ms, completions=completions, steps=served.steps, undone=undone
    )
