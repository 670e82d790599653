"""One benchmark of the engine's steps from recipe to result. Knows no terminal."""

from __future__ import annotations

from collections.abc import Callable

from caraserve_cli.bench.engine_result import CaseRun
from caraserve_cli.bench.engine_runs import run_cases
from caraserve_cli.bench.floor import (
    DeviceSpeed,
    adapters_seconds,
    decode_step_seconds,
    prefill_step_flops,
)
from caraserve_cli.bench.peers import OnPeer
from caraserve_cli.bench.step_recipe import Measure, StepCase, StepRecipe
from caraserve_cli.bench.step_result import StepResult
from caraserve_cli.bench.step_times import StepFloors, find_steps, judge_steps
from caraserve_cli.bench.synthetic import request_adapters
from caraserve_cli.fleet.surroundings import Surroundings

# Told after each run: the case's name, the repeat (from 1; 0 for a warm-up), and the median time of the
# steps that it measures, None where there is none.
OnStepRun = Callable[[str, int, float | None], None]


def run_steps(recipe: StepRecipe, on_run: OnStepRun, on_peer: OnPeer) -> StepResult:
    """Measure the device's speeds and then every case.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: the base cannot be had, or a step does not fit the device's memory.
    """
    cases = {case.name: case for case in recipe.cases}

    def tell(name: str, repeat: int, run: CaseRun) -> None:
        steps = find_steps(cases[name], run)
        on_run(name, repeat, None if steps is None else steps.step_ms)

    done = run_cases(recipe, tell, on_peer)
    return StepResult(
        done.facts,
        tuple(
            judge_steps(
                case,
                done.runs[case.name],
                None if case.without is None else done.runs[case.without],
                _floors_at(case, done.surroundings[case.options], done.speed),
                done.peers.get(case.name),
            )
            for case in recipe.cases
        ),
    )


def _floors_at(
    case: StepCase, surroundings: Surroundings, speed: DeviceSpeed
) -> Callable[[float], StepFloors]:
    """See `judge_steps`."""
    config, dtype = surroundings.base.config, surroundings.dtype
    adapters = request_adapters(case)

    def floors_at(context_tokens: float) -> StepFloors:
        lora_ms = 1000 * adapters_seconds(adapters, config, dtype, speed)
        if case.measure is Measure.DECODE:
            step_s = decode_step_seconds(adapters, context_tokens, config, dtype, speed)
            return StepFloors(step_ms=1000 * step_s, lora_ms=lora_ms, flops=0)
        flops = prefill_step_flops(case.options.max_batch_tokens, config)
        return StepFloors(step_ms=1000 * flops / speed.flops_per_s, lora_ms=lora_ms, flops=flops)

    return floors_at
