"""One benchmark of the simulator from recipe to result. Knows no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from caraserve_cli.bench.bench_device import bench_device
from caraserve_cli.bench.bench_replica import BenchReplica
from caraserve_cli.bench.case_runner import find_undone
from caraserve_cli.bench.engine_runs import run_replicas
from caraserve_cli.bench.serving_requests import make_arrivals
from caraserve_cli.bench.serving_run import ServingRun
from caraserve_cli.bench.simulator_recipe import SimulatorCase, SimulatorRecipe
from caraserve_cli.bench.simulator_result import SimulatorCaseResult, SimulatorResult, compare_rate
from caraserve_cli.bench.synthetic import adapters_of
from caraserve_cli.bench.virtual_replica import (
    adapter_infos,
    check_lora_kernel,
    replica_facts,
    serve_virtually,
)
from caraserve_cli.core import Completion, Request
from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.fleet.cold_start import find_profile
from caraserve_cli.fleet.machine import choose_dtype
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.model.resolve import resolve_base
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.placement.replica_facts import ReplicaFacts

# Told after each run: the case, what was run, the repeat (from 1; 0 for a warm-up), and the run.
OnSimulatorRun = Callable[[str, str, int, ServingRun], None]


def run_simulator(recipe: SimulatorRecipe, on_run: OnSimulatorRun) -> SimulatorResult:
    """Measure and simulate every case; those with the same options on one replica, one case after the other.

    Raises:
        OptionError: the recipe asks for what this machine does not have, a stored profile above all.
        InputError: the base cannot be had, or a step does not fit the device's memory.
        ProfileError: the stored profile cannot be read.
    """
    profile = _find_profile(recipe)

    def run(
        around: Surroundings, cases: Sequence[SimulatorCase], adapters: Sequence[str]
    ) -> tuple[float, dict[str, SimulatorCaseResult]]:
        started_s = time.perf_counter()
        with closing(BenchReplica(around, cases[0].options, adapters)) as replica:
            ready_s = time.perf_counter() - started_s
            return ready_s, {
                case.name: _run_case(recipe, case, around, replica, profile, on_run) for case in cases
            }

    done = run_replicas(recipe, run)
    return SimulatorResult(
        facts=done.facts,
        profile_measured_at=profile.measured_on.measured_at,
        cases=tuple(done.runs[case.name] for case in recipe.cases),
    )


def _find_profile(recipe: SimulatorRecipe) -> MachineProfile:
    """Of this machine, before anything is started."""
    options = recipe.options
    device = bench_device(recipe.name, options.device)
    dtype = choose_dtype(options.dtype, device, resolve_base(options.base, options.weights).config.dtype)
    profile = find_profile(options, dtype, device)
    if profile is None:
        name = str(dtype).removeprefix("torch.")
        raise OptionError(
            f"recipe '{recipe.name}': there is no profile of this machine with '{options.base}' in {name}, "
            f"by which the simulator goes; run `caraserve profile --base {options.base} --weights random "
            f"--device {device.type} --dtype {name}` first"
        )
    for case in recipe.cases:
        where = f"recipe '{recipe.name}', case '{case.name}'"
        check_lora_kernel(where, case.options.lora_kernel, profile, "the profile of this machine")
    return profile


@dataclass(frozen=True, slots=True)
class _Simulator:
    """What answers the requests of one case on virtual time."""

    case: SimulatorCase
    facts: ReplicaFacts

    def serve(self, requests: Sequence[Request], step_model: StepModel | None = None) -> ServingRun:
        """By the profile's model of steps, or by another one."""
        case, facts = self.case, self.facts
        if step_model is not None:
            facts = replace(facts, step_model=step_model)
        adapters = adapter_infos(adapters_of(case), facts.profile)
        return serve_virtually(facts, adapters, case.cold_start, case.scheduling, requests)


def _make_simulator(
    case: SimulatorCase, around: Surroundings, profile: MachineProfile, num_cpu_workers: int
) -> _Simulator:
    assert around.step_model is not None, "there is a profile"
    if case.link_gbps is not None:
        profile = profile.emulated(case.link_gbps)
    return _Simulator(case, replica_facts(profile, around.step_model, around.engine_config, num_cpu_workers))


def _run_case(
    recipe: SimulatorRecipe,
    case: SimulatorCase,
    around: Surroundings,
    replica: BenchReplica,
    profile: MachineProfile,
    on_run: OnSimulatorRun,
) -> SimulatorCaseResult:
    where = f"recipe '{recipe.name}', case '{case.name}'"
    simulator = _make_simulator(case, around, profile, replica.num_cpu_workers)
    step_model = simulator.facts.step_model
    for warmup in range(1, recipe.warmups + 1):
        for rate_per_s in case.rates_per_s:
            requests = make_arrivals(case, -warmup, rate_per_s, replica.vocab_size)
            on_run(case.name, f"{rate_per_s}/s", 0, _measure(where, replica, case, requests))
    corrected = step_model.corrected(replica.step_corrections) if recipe.warmups else None
    rates, undone = [], []
    for rate_per_s in case.rates_per_s:
        measured: list[ServingRun] = []
        simulated: list[ServingRun] = []
        by_corrected: list[ServingRun] = []
        for repeat in range(1, recipe.repeats + 1):
            requests = make_arrivals(case, repeat, rate_per_s, replica.vocab_size)
            measured.append(_measure(where, replica, case, requests))
            on_run(case.name, f"{rate_per_s}/s, measured", repeat, measured[-1])
            simulated.append(simulator.serve(requests))
            on_run(case.name, f"{rate_per_s}/s, simulated", repeat, simulated[-1])
            if corrected is not None:
                by_corrected.append(simulator.serve(requests, corrected))
        undone += [f"at {rate_per_s}/s {run.undone}" for run in measured if run.undone is not None]
        rates.append(compare_rate(case, rate_per_s, measured, simulated, by_corrected))
    return SimulatorCaseResult(
        case=case,
        has_lora_model=step_model.lora_kernel is not None or profile.decode_lora is not None,
        rates=tuple(rates),
        undone=tuple(undone),
    )


def _measure(
    where: str, replica: BenchReplica, case: SimulatorCase, requests: Sequence[Request]
) -> ServingRun:
    """All requests in their time, with no adapter on the device at first."""
    replica.set_out(case.cold_start, (), case.link_gbps)
    replica.use_scheduling(case.scheduling)
    served = replica.answer_in_time(requests)
    run = ServingRun(
        started_ms=served.started_ms,
        completions=[each for each in served.outcomes if isinstance(each, Completion)],
        steps=served.steps,
        undone=find_undone(requests, served.outcomes),
    )
    if not run.completions:
        raise InputError(f"{where}: {run.undone}")
    return run
