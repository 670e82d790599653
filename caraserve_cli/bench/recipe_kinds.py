"""Which kinds of recipes there are; the key `kind` says which one a file is.

A further kind is one more entry of `_KINDS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from caraserve_cli.bench.arrival_recipe import ARRIVALS, ArrivalRecipe, parse_arrivals
from caraserve_cli.bench.assist_recipe import ASSIST, AssistRecipe, parse_assist
from caraserve_cli.bench.cluster_parser import parse_cluster
from caraserve_cli.bench.cluster_recipe import CLUSTER, ClusterRecipe
from caraserve_cli.bench.driver_recipe import DRIVER, DriverRecipe, parse_driver
from caraserve_cli.bench.gate_rules import parse_gate_rules
from caraserve_cli.bench.kernel_recipe import KERNELS, KernelRecipe, parse_kernels
from caraserve_cli.bench.kind_runs import (
    measure_arrivals,
    measure_assist,
    measure_cluster,
    measure_comparison,
    measure_driver,
    measure_kernels,
    measure_paired,
    measure_serving,
    measure_simulator,
    measure_slo,
    measure_steps,
    measure_throughput,
    simulate_slo,
)
from caraserve_cli.bench.measured import Measured, Tell
from caraserve_cli.bench.paired_recipe import PAIRED, PairedRecipe, parse_paired
from caraserve_cli.bench.paper import parse_paper
from caraserve_cli.bench.recipe import COMPARISON, Recipe, parse_recipe
from caraserve_cli.bench.recipe_file import read_recipe
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.bench.serving_recipe import SERVING, ServingRecipe, parse_serving
from caraserve_cli.bench.simulator_recipe import SIMULATOR, SimulatorRecipe, parse_simulator
from caraserve_cli.bench.slo_recipe import SLO, SloRecipe, parse_slo
from caraserve_cli.bench.small import (
    small_assist,
    small_cluster,
    small_comparison,
    small_driver,
    small_kernels,
    small_paired,
)
from caraserve_cli.bench.small_engine import (
    small_arrivals,
    small_serving,
    small_simulator,
    small_slo,
    small_steps,
    small_throughput,
)
from caraserve_cli.bench.step_recipe import STEPS, StepRecipe, parse_steps
from caraserve_cli.bench.throughput_recipe import THROUGHPUT, ThroughputRecipe, parse_throughput
from caraserve_cli.errors import OptionError


class AnyRecipe(Protocol):
    """What a recipe of any kind says of itself."""

    @property
    def name(self) -> str: ...
    @property
    def description(self) -> str: ...


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


_KINDS: dict[str, RecipeKind[Any]] = {
    ARRIVALS: RecipeKind(ArrivalRecipe, parse_arrivals, small_arrivals, measure_arrivals),
    ASSIST: RecipeKind(AssistRecipe, parse_assist, small_assist, measure_assist),
    CLUSTER: RecipeKind(ClusterRecipe, parse_cluster, small_cluster, measure_cluster),
    COMPARISON: RecipeKind(Recipe, parse_recipe, small_comparison, measure_comparison),
    DRIVER: RecipeKind(DriverRecipe, parse_driver, small_driver, measure_driver),
    KERNELS: RecipeKind(KernelRecipe, parse_kernels, small_kernels, measure_kernels),
    PAIRED: RecipeKind(PairedRecipe, parse_paired, small_paired, measure_paired, measure_paired),
    SERVING: RecipeKind(ServingRecipe, parse_serving, small_serving, measure_serving),
    SIMULATOR: RecipeKind(SimulatorRecipe, parse_simulator, small_simulator, measure_simulator),
    SLO: RecipeKind(SloRecipe, parse_slo, small_slo, measure_slo, simulate=simulate_slo),
    STEPS: RecipeKind(StepRecipe, parse_steps, small_steps, measure_steps),
    THROUGHPUT: RecipeKind(ThroughputRecipe, parse_throughput, small_throughput, measure_throughput),
}
