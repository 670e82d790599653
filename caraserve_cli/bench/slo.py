"""One benchmark of scheduling from recipe to result, measured, or on virtual time. Knows no terminal."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

from caraserve_cli.bench.bench_replica import BenchReplica
from caraserve_cli.bench.case_runner import find_undone
from caraserve_cli.bench.cold_starts import AUTO, rotated
from caraserve_cli.bench.engine_runs import run_replicas
from caraserve_cli.bench.serving_requests import make_arrivals
from caraserve_cli.bench.serving_run import ServingRun
from caraserve_cli.bench.slo_recipe import SloCase, SloRecipe
from caraserve_cli.bench.slo_result import SloCaseResult, SloResult, summarise_rate
from caraserve_cli.bench.virtual_machine import VirtualMachine
from caraserve_cli.core import Completion, Request
from caraserve_cli.engine.scheduling import FirstComeFirstServed
from caraserve_cli.errors import InputError
from caraserve_cli.fleet.surroundings import Surroundings

# Answers requests in their time by a scheduling policy, with no adapter on the device at first.
_Serve = Callable[[str, Sequence[Request]], ServingRun]

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
                case.name: _SloRuns(recipe, case, replica.vocab_size, partial(_serve, replica), on_run).run(
                    has_step_model=has_step_model
                )
                for case in cases
            }

    done = run_replicas(recipe, run)
    return SloResult(facts=done.facts, cases=tuple(done.runs[case.name] for case in recipe.cases))


def simulate_slo(recipe: SloRecipe, machine: VirtualMachine, on_run: OnSloRun) -> SloResult:
    """The same on virtual time, by the profile of a machine; it needs no warm-up, and repeats differ by their
    requests alone.

    Raises:
        OptionError: the profile is not of the recipe's base, or the recipe leaves to the machine what only a
            true one can tell.
    """
    recipe = dataclasses.replace(recipe, warmups=0)
    results: list[SloCaseResult] = []
    for case in recipe.cases:
        serve = partial(machine.serve, recipe.name, case, AUTO)
        runs = _SloRuns(recipe, case, machine.profile.shape.vocab_size, serve, on_run)
        results.append(runs.run(has_step_model=True))
    return SloResult(facts=machine.facts(recipe), cases=tuple(results))


@dataclass(frozen=True, slots=True)
class _SloRuns:
    """The runs of one case."""

    recipe: SloRecipe
    case: SloCase
    vocab_size: int
    serve: _Serve
    on_run: OnSloRun

    def run(self, *, has_step_model: bool) -> SloCaseResult:
        """All of them; those that tell the TPOT bound first."""
        case, recipe = self.case, self.recipe
        lowest = case.rates_per_s[0]
        for warmup in range(1, recipe.warmups + 1):
            for policy in case.scheduling:
                self._run(policy, 0, policy, self._arrivals(case, -warmup, lowest))
        base_tpot_ms = None
        if case.tpot_within is not None:
            arrivals = self._arrivals(case, 0, lowest)
            bare = [dataclasses.replace(each, adapter=None) for each in arrivals]
            base = self._run("without adapters", 0, FirstComeFirstServed.name, bare)
            base_tpot_ms = base.measured_ms()["mean_tpot"]
            bounds = dataclasses.replace(case.bounds, tpot_slo_ms=case.tpot_within * base_tpot_ms)
            case = dataclasses.replace(case, bounds=bounds)
        runs: dict[tuple[str, int], list[ServingRun]] = {}
        for rate_per_s in case.rates_per_s:
            for repeat in range(1, recipe.repeats + 1):
                for policy in rotated(case.scheduling, repeat - 1):
                    arrivals = self._arrivals(case, repeat, rate_per_s)
                    done = self._run(f"{policy}, {rate_per_s}/s", repeat, policy, arrivals)
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

    def _arrivals(self, case: SloCase, repeat: int, rate_per_s: int) -> list[Request]:
        return make_arrivals(case, repeat, rate_per_s, self.vocab_size)

    def _run(self, what: str, repeat: int, policy: str, requests: Sequence[Request]) -> ServingRun:
        done = self.serve(policy, requests)
        if not done.completions:
            raise InputError(f"recipe '{self.recipe.name}', case '{self.case.name}', {what}: {done.undone}")
        self.on_run(self.case.name, what, repeat, done)
        return done


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
