"""One benchmark of scheduling from recipe to result. Knows no terminal."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import closing

from caraserve_cli.bench.bench_replica import BenchReplica
from caraserve_cli.bench.case_runner import find_undone
from caraserve_cli.bench.cold_starts import AUTO, rotated
from caraserve_cli.bench.engine_runs import run_replicas
from caraserve_cli.bench.serving_requests import make_arrivals
from caraserve_cli.bench.serving_run import ServingRun
from caraserve_cli.bench.slo_recipe import SloCase, SloRecipe
from caraserve_cli.bench.slo_result import SloCaseResult, SloResult, summarise_rate
from caraserve_cli.core import Completion, Request
from caraserve_cli.engine.scheduling import FirstComeFirstServed
from caraserve_cli.errors import InputError
from caraserve_cli.fleet.surroundings import Surroundings

# Told after each run: the case, what was run, the repeat (from 1; 0 for what is not compared), and the run.
OnSloRun = Callable[[str, str, int, ServingRun], None]


def run_slo(recipe: SloRecipe, on_run: OnSloRun) -> SloResult:
    """Measure every case; those with the same options on one replica, one case after the other.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: the base cannot be had, or a step does not fit the device's memory.
    """

    def run(
        around: Surroundings, cases: Sequence[SloCase], adapters: Sequence[str]
    ) -> tuple[float, dict[str, SloCaseResult]]:
        started_s = time.perf_counter()
        with closing(BenchReplica(around, cases[0].options, adapters)) as replica:
            ready_s = time.perf_counter() - started_s
            has_step_model = around.step_model is not None
            return ready_s, {
                case.name: _run_case(recipe, case, replica, on_run, has_step_model=has_step_model)
                for case in cases
            }

    done = run_replicas(recipe, run)
    return SloResult(facts=done.facts, cases=tuple(done.runs[case.name] for case in recipe.cases))


def _run_case(
    recipe: SloRecipe, case: SloCase, replica: BenchReplica, on_run: OnSloRun, *, has_step_model: bool
) -> SloCaseResult:
    def run(what: str, repeat: int, policy: str, requests: Sequence[Request]) -> ServingRun:
        done = _serve(replica, policy, requests)
        if not done.completions:
            raise InputError(f"recipe '{recipe.name}', case '{case.name}', {what}: {done.undone}")
        on_run(case.name, what, repeat, done)
        return done

    def arrivals(repeat: int, rate_per_s: int) -> list[Request]:
        return make_arrivals(case, repeat, rate_per_s, replica.vocab_size)

    lowest = case.rates_per_s[0]
    for warmup in range(1, recipe.warmups + 1):
        for policy in case.scheduling:
            run(policy, 0, policy, arrivals(-warmup, lowest))
    base_tpot_ms = None
    if case.tpot_within is not None:
        bare = [dataclasses.replace(each, adapter=None) for each in arrivals(0, lowest)]
        base = run("without adapters", 0, FirstComeFirstServed.name, bare)
        base_tpot_ms = base.measured_ms()["mean_tpot"]
        bounds = dataclasses.replace(case.bounds, tpot_slo_ms=case.tpot_within * base_tpot_ms)
        case = dataclasses.replace(case, bounds=bounds)
    runs: dict[tuple[str, int], list[ServingRun]] = {}
    for rate_per_s in case.rates_per_s:
        for repeat in range(1, recipe.repeats + 1):
            for policy in rotated(case.scheduling, repeat - 1):
                done = run(f"{policy}, {rate_per_s}/s", repeat, policy, arrivals(repeat, rate_per_s))
                runs.setdefault((policy, rate_per_s), []).append(done)
    return SloCaseResult(
        case=case,
        bounds=case.bounds,
        base_tpot_ms=base_tpot_ms,
        has_step_model=has_step_model,
        rates={
            policy: [summarise_rate(rate, runs[policy, rate]) for rate in case.rates_per_s]
            for policy in case.scheduling
        },
        undone=tuple(
            f"with {policy} at {rate}/s {done.undone}"
            for (policy, rate), repeats in runs.items()
            for done in repeats
            if done.undone is not None
        ),
    )


def _serve(replica: BenchReplica, policy: str, requests: Sequence[Request]) -> ServingRun:
    """All requests in their time, with no adapter on the device at first."""
    replica.set_out(AUTO, (), None)
    replica.use_scheduling(policy)
    served = replica.answer_in_time(requests)
    return ServingRun(
        started_ms=served.started_ms,
        completions=[each for each in served.outcomes if isinstance(each, Completion)],
        steps=served.steps,
        undone=find_undone(requests, served.outcomes),
    )
