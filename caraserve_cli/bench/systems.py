"""A recipe's systems, by name; what only one of them needs is imported only for it."""

from __future__ import annotations

from caraserve_cli.bench.recipe import Recipe
from caraserve_cli.bench.system import CARASERVE, PEFT_MIXED, PEFT_ONE_ADAPTER, System
from caraserve_cli.bench.workload import Workload
from caraserve_cli.errors import InputError


def build_systems(recipe: Recipe, workload: Workload) -> list[System]:
    """The recipe's systems, loaded and ready, in the recipe's order.

    Raises:
        InputError: a system's package is not installed, or it cannot load the workload.
    """
    systems: dict[str, System] = {}
    if CARASERVE in recipe.systems:
        from caraserve_cli.bench.caraserve_system import CaraServeSystem

        systems[CARASERVE] = CaraServeSystem(recipe)
    if not {PEFT_MIXED, PEFT_ONE_ADAPTER}.isdisjoint(recipe.systems):
        systems |= _peft_systems(recipe, workload)
    return [systems[name] for name in recipe.systems]


def _peft_systems(recipe: Recipe, workload: Workload) -> dict[str, System]:
    try:
        from caraserve_cli.bench.peft_systems import load_peft_systems
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise InputError(
            f"recipe '{recipe.name}' compares with PEFT, which is not installed; "
            "run pip install 'caraserve[test]', in a clone '.[test]'"
        ) from error
    return {**load_peft_systems(workload, recipe.batch_size)}
