"""A recipe's systems, by name; what only one of them needs is imported only for it."""

from __future__ import annotations

from importlib.util import find_spec

from caraserve_cli.bench.recipe import Recipe
from caraserve_cli.bench.system import CARASERVE, PEFT_MIXED, PEFT_ONE_ADAPTER, System
from caraserve_cli.bench.workload import Workload
from caraserve_cli.errors import InputError


def check_installed(recipe: Recipe) -> None:
    """Refuse before any work what would fail after some.

    Raises:
        InputError: a system's package is not installed.
    """
    if _has_peft(recipe) and find_spec("peft") is None:
        raise InputError(
            f"recipe '{recipe.name}' compares with PEFT, which is not installed; "
            "run pip install 'caraserve[test]', in a clone '.[test]'"
        )


def build_systems(recipe: Recipe, workload: Workload) -> list[System]:
    """The recipe's systems, loaded and ready, in the recipe's order; see `check_installed`.

    Raises:
        InputError: a system cannot load the workload.
    """
    systems: dict[str, System] = {}
    if CARASERVE in recipe.systems:
        from caraserve_cli.bench.caraserve_system import CaraServeSystem

        systems[CARASERVE] = CaraServeSystem(recipe)
    if _has_peft(recipe):
        from caraserve_cli.bench.peft_systems import load_peft_systems

        systems |= load_peft_systems(workload, recipe.batch_size)
    return [systems[name] for name in recipe.systems]


def _has_peft(recipe: Recipe) -> bool:
    return not {PEFT_MIXED, PEFT_ONE_ADAPTER}.isdisjoint(recipe.systems)
