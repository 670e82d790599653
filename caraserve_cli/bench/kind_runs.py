"""How a recipe of each kind is measured, or simulated: what runs it, what shows it, and what is told after
each run. What measures is imported when it is asked to, so that listing recipes starts no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from caraserve_cli.bench.arrival_recipe import ArrivalRecipe
from caraserve_cli.bench.assist_recipe import AssistRecipe
from caraserve_cli.bench.cluster_recipe import ClusterRecipe
from caraserve_cli.bench.driver_recipe import DriverRecipe
from caraserve_cli.bench.kernel_recipe import KernelRecipe
from caraserve_cli.bench.measured import Measured, Tell
from caraserve_cli.bench.paired_recipe import PairedRecipe, skipped_cases
from caraserve_cli.bench.recipe import Recipe
from caraserve_cli.bench.serving_recipe import ServingRecipe
from caraserve_cli.bench.simulator_recipe import SimulatorRecipe
from caraserve_cli.bench.slo_recipe import SloRecipe
from caraserve_cli.bench.step_recipe import StepRecipe
from caraserve_cli.bench.throughput_recipe import ThroughputRecipe

if TYPE_CHECKING:
    from caraserve_cli.bench.engine_case import EngineCase
    from caraserve_cli.bench.engine_result import Peer
    from caraserve_cli.bench.slo import OnSloRun


def measure_comparison(recipe: Recipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.benchmark import run_benchmark
    from caraserve_cli.bench.terminal import render

    result = run_benchmark(
        recipe,
        lambda system, repeat, run: tell(system, repeat, recipe.repeats, _speed(run.tokens_per_s)),
    )
    return Measured(result, render(result))


def measure_throughput(recipe: ThroughputRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.throughput import run_throughput
    from caraserve_cli.bench.throughput_terminal import render_throughput

    result = run_throughput(
        recipe,
        lambda case, repeat, run: tell(case, repeat, recipe.repeats, _speed(run.tokens_per_s)),
        lambda case, peer: _tell_peer(tell, case, peer, _speed(peer.run.tokens_per_s) if peer.run else None),
    )
    return Measured(result, render_throughput(result))


def measure_steps(recipe: StepRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.step_terminal import render_steps
    from caraserve_cli.bench.steps import run_steps

    result = run_steps(
        recipe,
        lambda case, repeat, step_ms: tell(case, repeat, recipe.repeats, _step_time(step_ms)),
        lambda case, peer: _tell_peer(tell, case, peer, _step_time(peer.run.step_ms) if peer.run else None),
    )
    return Measured(result, render_steps(result))


def measure_serving(recipe: ServingRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.serving import run_serving
    from caraserve_cli.bench.serving_terminal import render_serving

    result = run_serving(
        recipe,
        lambda case, strategy, repeat, run: tell(
            f"{case}, {strategy}", repeat, recipe.repeats, _mean_ttft(run.measured_ms().get("mean_ttft"))
        ),
    )
    return Measured(result, render_serving(result))


def measure_simulator(recipe: SimulatorRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.simulator import run_simulator
    from caraserve_cli.bench.simulator_terminal import render_simulator

    result = run_simulator(
        recipe,
        lambda case, what, repeat, run: tell(
            f"{case}, {what}", repeat, recipe.repeats, _mean_ttft(run.measured_ms().get("mean_ttft"))
        ),
    )
    return Measured(result, render_simulator(result))


def measure_slo(recipe: SloRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.slo import run_slo
    from caraserve_cli.bench.slo_terminal import render_slo

    result = run_slo(recipe, _slo_teller(recipe, tell))
    return Measured(result, render_slo(result))


def simulate_slo(recipe: SloRecipe, tell: Tell, profile: Path) -> Measured:
    from caraserve_cli.bench.slo import simulate_slo
    from caraserve_cli.bench.slo_terminal import render_slo
    from caraserve_cli.bench.virtual_machine import VirtualMachine

    result = simulate_slo(recipe, VirtualMachine.read(profile), _slo_teller(recipe, tell))
    return Measured(result, render_slo(result))


def _slo_teller(recipe: SloRecipe, tell: Tell) -> OnSloRun:
    return lambda case, what, repeat, run: tell(
        f"{case}, {what}", repeat, recipe.repeats, _attained(run.slo_attainment)
    )


def _attained(share: float | None) -> str:
    return "no bounds" if share is None else f"{share:.1%} within bounds"


def measure_arrivals(recipe: ArrivalRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.arrival_terminal import cell_summary, render_arrivals
    from caraserve_cli.bench.arrivals import run_arrivals

    result = run_arrivals(
        recipe, lambda case, cell: tell(f"{case}, {cell.cell.name}", 0, 0, cell_summary(cell))
    )
    return Measured(result, render_arrivals(result))


def measure_cluster(recipe: ClusterRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.cluster import run_cluster
    from caraserve_cli.bench.cluster_plot import attainment_svg
    from caraserve_cli.bench.cluster_terminal import point_summary, render_cluster

    result = run_cluster(recipe, lambda point: tell(point.name, 0, 0, point_summary(point)))
    return Measured(result, render_cluster(result), {".svg": attainment_svg(result)})


def measure_driver(recipe: DriverRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.driver import run_driver
    from caraserve_cli.bench.driver_terminal import driver_summary, render_driver

    result = run_driver(
        recipe,
        lambda case, repeat, requests_per_s: tell(
            case, repeat, recipe.repeats, driver_summary(requests_per_s)
        ),
    )
    return Measured(result, render_driver(result))


def _tell_peer(tell: Tell, case: EngineCase, peer: Peer, gave: str | None) -> None:
    tell(f"{case.name}, {case.peft_name}", 1, 1, gave or f"not measured: {peer.problem}")


def measure_kernels(recipe: KernelRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.kernel_terminal import render_kernels, summary
    from caraserve_cli.bench.kernels import run_kernels

    result = run_kernels(
        recipe,
        lambda section, case: tell(f"{section}, {case.name}", 0, 0, summary(case)),
    )
    return Measured(result, render_kernels(result))


def measure_assist(recipe: AssistRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.assist_run import run_assist
    from caraserve_cli.bench.assist_terminal import render_assist, summary

    result = run_assist(recipe, lambda case: tell(case.name, 0, 0, summary(case)))
    return Measured(result, render_assist(result), {".trace.json": result.trace_json()})


def measure_paired(recipe: PairedRecipe, tell: Tell, slow_decode: float | None = None) -> Measured:
    for case, why in skipped_cases(recipe).items():
        tell(case, 0, 0, f"nothing, for {why}")
    from caraserve_cli.bench.paired_run import run_paired
    from caraserve_cli.bench.paired_terminal import render_paired, summary

    result = run_paired(
        recipe,
        lambda case, repeat, done: tell(case, repeat, recipe.repeats, summary(done)),
        slow_decode,
    )
    return Measured(result, render_paired(result))


def _speed(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f} output tokens/s"


def _mean_ttft(ttft_ms: float | None) -> str:
    return "no request was answered" if ttft_ms is None else f"mean TTFT {ttft_ms:,.1f} ms"


def _step_time(step_ms: float | None) -> str:
    return "no step to measure" if step_ms is None else f"{step_ms:.3f} ms a step"
