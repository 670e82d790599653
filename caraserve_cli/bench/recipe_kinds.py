"""Which kinds of recipes there are; the key `kind` says which one a file is.

A further kind is one more entry of `_KINDS`. What measures is imported when it is asked to, so that listing
recipes starts no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from caraserve_cli.bench.arrival_recipe import ARRIVALS, ArrivalRecipe, parse_arrivals
from caraserve_cli.bench.assist_recipe import ASSIST, AssistRecipe, parse_assist
from caraserve_cli.bench.cluster_parser import parse_cluster
from caraserve_cli.bench.cluster_recipe import CLUSTER, ClusterRecipe
from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.driver_recipe import DRIVER, DriverRecipe, parse_driver
from caraserve_cli.bench.gate_rules import parse_gate_rules
from caraserve_cli.bench.kernel_recipe import KERNELS, KernelRecipe, parse_kernels
from caraserve_cli.bench.paired_recipe import PAIRED, PairedRecipe, parse_paired
from caraserve_cli.bench.paper import parse_paper
from caraserve_cli.bench.recipe import COMPARISON, Recipe, parse_recipe
from caraserve_cli.bench.recipe_file import read_recipe
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.bench.serving_recipe import SERVING, ServingRecipe, parse_serving
from caraserve_cli.bench.simulator_recipe import SIMULATOR, SimulatorRecipe, parse_simulator
from caraserve_cli.bench.slo_recipe import SLO, SloRecipe, parse_slo
from caraserve_cli.bench.small import (
    small_arrivals,
    small_assist,
    small_cluster,
    small_comparison,
    small_driver,
    small_kernels,
    small_paired,
    small_serving,
    small_simulator,
    small_slo,
    small_steps,
    small_throughput,
)
from caraserve_cli.bench.step_recipe import STEPS, StepRecipe, parse_steps
from caraserve_cli.bench.throughput_recipe import THROUGHPUT, ThroughputRecipe, parse_throughput
from caraserve_cli.errors import OptionError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from caraserve_cli.bench.engine_case import EngineCase
    from caraserve_cli.bench.engine_result import Peer
    from caraserve_cli.bench.slo import OnSloRun

# Told after each run: what was measured, the repeat (from 1; 0 for a warm-up), the repeats (0: measured as a
# whole), and what it gave.
Tell = Callable[[str, int, int, str], None]


class AnyRecipe(Protocol):
    """What a recipe of any kind says of itself."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...


class AnyResult(Protocol):
    """What a benchmark of any kind found."""

    @property
    def verdict(self) -> Verdict: ...
    def as_json(self) -> dict[str, object]: ...


@dataclass(frozen=True, slots=True)
class Measured:
    """A result, the same as text for a terminal, and what goes beside `--json NAME.json`: suffix, which takes
    the place of `.json`, → content: JSON, or text as it is."""

    result: AnyResult
    rendered: RenderableType
    beside: Mapping[str, Mapping[str, object] | str] = field(default_factory=dict)


_Recipe = TypeVar("_Recipe", bound=AnyRecipe)


@dataclass(frozen=True, slots=True)
class RecipeKind(Generic[_Recipe]):
    """How recipes of one kind are read, cut down (see `small`) and measured, and with decoding steps slowed
    by a factor, where they can be, and what the machine of a profile would give, where that can be
    simulated."""

    recipe_type: type[_Recipe]
    parse: Callable[[RecipeTable, Path], _Recipe]
    shrink: Callable[[_Recipe], _Recipe]
    measure: Callable[[_Recipe, Tell], Measured]
    measure_slowed: Callable[[_Recipe, Tell, float], Measured] | None = None
    simulate: Callable[[_Recipe, Tell, Path], Measured] | None = None


def load_any_recipe(path: Path) -> AnyRecipe:
    """The recipe in a file, whatever its kind.

    Raises:
        InputError: the file cannot be read.
        OptionError: it is no TOML, has an unknown key, or a wrong value.
    """
    table = read_recipe(path)
    # Any kind may have these.
    parse_gate_rules(table)
    parse_paper(table)
    recipe: AnyRecipe = _KINDS[table.choice("kind", tuple(_KINDS), COMPARISON)].parse(table, path)
    return recipe


def shrink_recipe(recipe: AnyRecipe) -> AnyRecipe:
    """A recipe of any kind cut down to what a CPU does in seconds, on the embedded sample.

    Raises:
        InputError: this installation has no sample.
    """
    small: AnyRecipe = _kind_of(recipe).shrink(recipe)
    return small


def measure_recipe(recipe: AnyRecipe, tell: Tell, slow_decode: float | None = None) -> Measured:
    """Do what a recipe of any kind asks for.

    Args:
        slow_decode: by what factor decoding steps are slowed on purpose; None for not at all.

    Raises:
        OptionError: it asks for what this machine does not have, or for slowed steps where none can be.
        InputError: something that it names cannot be had.
    """
    if slow_decode is not None:
        return _slowed(recipe)(recipe, tell, slow_decode)
    return _kind_of(recipe).measure(recipe, tell)


def simulate_recipe(recipe: AnyRecipe, tell: Tell, profile: Path) -> Measured:
    """Compute on virtual time what a recipe would measure on the machine of a profile's file.

    Raises:
        InputError: the profile cannot be read.
        OptionError: recipes of its kind cannot be simulated, or the profile does not fit it.
        ProfileError: the profile is none of this version.
    """
    if (simulate := _kind_of(recipe).simulate) is None:
        raise OptionError(
            f"--profile: only recipes of the kind '{SLO}' are simulated by a profile, and '{recipe.name}' is "
            "none; leave it out"
        )
    return simulate(recipe, tell, profile)


def check_can_be_slowed(recipe: AnyRecipe) -> None:
    """Refuse a recipe whose decoding steps cannot be slowed.

    Raises:
        OptionError: they cannot.
    """
    _slowed(recipe)


def _kind_of(recipe: AnyRecipe) -> RecipeKind[Any]:
    return next(kind for kind in _KINDS.values() if isinstance(recipe, kind.recipe_type))


def _slowed(recipe: AnyRecipe) -> Callable[[Any, Tell, float], Measured]:
    if (measure := _kind_of(recipe).measure_slowed) is None:
        raise OptionError(
            f"--slow-decode: only the steps of recipes of the kind '{PAIRED}' are slowed, such as quick, and "
            f"'{recipe.name}' is none"
        )
    return measure


def _measure_comparison(recipe: Recipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.benchmark import run_benchmark
    from caraserve_cli.bench.terminal import render

    result = run_benchmark(
        recipe,
        lambda system, repeat, run: tell(system, repeat, recipe.repeats, _speed(run.tokens_per_s)),
    )
    return Measured(result, render(result))


def _measure_throughput(recipe: ThroughputRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.throughput import run_throughput
    from caraserve_cli.bench.throughput_terminal import render_throughput

    result = run_throughput(
        recipe,
        lambda case, repeat, run: tell(case, repeat, recipe.repeats, _speed(run.tokens_per_s)),
        lambda case, peer: _tell_peer(tell, case, peer, _speed(peer.run.tokens_per_s) if peer.run else None),
    )
    return Measured(result, render_throughput(result))


def _measure_steps(recipe: StepRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.step_terminal import render_steps
    from caraserve_cli.bench.steps import run_steps

    result = run_steps(
        recipe,
        lambda case, repeat, step_ms: tell(case, repeat, recipe.repeats, _step_time(step_ms)),
        lambda case, peer: _tell_peer(tell, case, peer, _step_time(peer.run.step_ms) if peer.run else None),
    )
    return Measured(result, render_steps(result))


def _measure_serving(recipe: ServingRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.serving import run_serving
    from caraserve_cli.bench.serving_terminal import render_serving

    result = run_serving(
        recipe,
        lambda case, strategy, repeat, run: tell(
            f"{case}, {strategy}", repeat, recipe.repeats, _mean_ttft(run.measured_ms().get("mean_ttft"))
        ),
    )
    return Measured(result, render_serving(result))


def _measure_simulator(recipe: SimulatorRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.simulator import run_simulator
    from caraserve_cli.bench.simulator_terminal import render_simulator

    result = run_simulator(
        recipe,
        lambda case, what, repeat, run: tell(
            f"{case}, {what}", repeat, recipe.repeats, _mean_ttft(run.measured_ms().get("mean_ttft"))
        ),
    )
    return Measured(result, render_simulator(result))


def _measure_slo(recipe: SloRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.slo import run_slo
    from caraserve_cli.bench.slo_terminal import render_slo

    result = run_slo(recipe, _slo_teller(recipe, tell))
    return Measured(result, render_slo(result))


def _simulate_slo(recipe: SloRecipe, tell: Tell, profile: Path) -> Measured:
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


def _measure_arrivals(recipe: ArrivalRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.arrival_terminal import cell_summary, render_arrivals
    from caraserve_cli.bench.arrivals import run_arrivals

    result = run_arrivals(
        recipe, lambda case, cell: tell(f"{case}, {cell.cell.name}", 0, 0, cell_summary(cell))
    )
    return Measured(result, render_arrivals(result))


def _measure_cluster(recipe: ClusterRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.cluster import run_cluster
    from caraserve_cli.bench.cluster_plot import attainment_svg
    from caraserve_cli.bench.cluster_terminal import point_summary, render_cluster

    result = run_cluster(recipe, lambda point: tell(point.name, 0, 0, point_summary(point)))
    return Measured(result, render_cluster(result), {".svg": attainment_svg(result)})


def _measure_driver(recipe: DriverRecipe, tell: Tell) -> Measured:
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


def _measure_kernels(recipe: KernelRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.kernel_terminal import render_kernels, summary
    from caraserve_cli.bench.kernels import run_kernels

    result = run_kernels(
        recipe,
        lambda section, case: tell(f"{section}, {case.name}", 0, 0, summary(case)),
    )
    return Measured(result, render_kernels(result))


def _measure_assist(recipe: AssistRecipe, tell: Tell) -> Measured:
    from caraserve_cli.bench.assist_run import run_assist
    from caraserve_cli.bench.assist_terminal import render_assist, summary

    result = run_assist(recipe, lambda case: tell(case.name, 0, 0, summary(case)))
    return Measured(result, render_assist(result), {".trace.json": result.trace_json()})


def _measure_paired(recipe: PairedRecipe, tell: Tell, slow_decode: float | None = None) -> Measured:
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


_KINDS: dict[str, RecipeKind[Any]] = {
    ARRIVALS: RecipeKind(ArrivalRecipe, parse_arrivals, small_arrivals, _measure_arrivals),
    ASSIST: RecipeKind(AssistRecipe, parse_assist, small_assist, _measure_assist),
    CLUSTER: RecipeKind(ClusterRecipe, parse_cluster, small_cluster, _measure_cluster),
    COMPARISON: RecipeKind(Recipe, parse_recipe, small_comparison, _measure_comparison),
    DRIVER: RecipeKind(DriverRecipe, parse_driver, small_driver, _measure_driver),
    KERNELS: RecipeKind(KernelRecipe, parse_kernels, small_kernels, _measure_kernels),
    PAIRED: RecipeKind(PairedRecipe, parse_paired, small_paired, _measure_paired, _measure_paired),
    SERVING: RecipeKind(ServingRecipe, parse_serving, small_serving, _measure_serving),
    SIMULATOR: RecipeKind(SimulatorRecipe, parse_simulator, small_simulator, _measure_simulator),
    SLO: RecipeKind(SloRecipe, parse_slo, small_slo, _measure_slo, simulate=_simulate_slo),
    STEPS: RecipeKind(StepRecipe, parse_steps, small_steps, _measure_steps),
    THROUGHPUT: RecipeKind(ThroughputRecipe, parse_throughput, small_throughput, _measure_throughput),
}
