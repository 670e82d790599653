"""Embedded recipes are found by name, others by path, and the embedded ones are complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.bench.catalogue import embedded_recipes, find_recipe
from caraserve_cli.bench.recipe import Recipe, Requirement, load_recipe
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.errors import OptionError

COMPARISONS = [path for path in embedded_recipes() if isinstance(load_any_recipe(path), Recipe)]


@pytest.mark.parametrize("recipe", COMPARISONS, ids=lambda path: path.stem)
def test_every_embedded_comparison_names_what_is_there(recipe: Path) -> None:
    workload = load_recipe(recipe).workload
    assert Path(workload.base).is_dir()
    assert all(root.is_dir() for root in workload.adapter_roots)
    assert workload.requests.is_file()


@pytest.mark.parametrize("recipe", COMPARISONS, ids=lambda path: path.stem)
def test_every_embedded_comparison_requires_what_was_promised(recipe: Path) -> None:
    """At least 2x of PEFT's mixed batches, at least 5x of one adapter at a time."""
    assert load_recipe(recipe).requirements == (
        Requirement(ours="caraserve", over="peft-mixed", at_least=2.0),
        Requirement(ours="caraserve", over="peft-one-adapter", at_least=5.0),
    )


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.touch()
    assert find_recipe(str(path)) == path


def test_a_name_like_no_other_lists_them_all() -> None:
    with pytest.raises(OptionError, match=r"no recipe 'zzz'; there are .*peft, peft-long"):
        find_recipe("zzz")
