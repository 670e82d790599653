"""Which kinds of recipes there are; the key `kind` says which one a file is."""

from __future__ import annotations

from pathlib import Path

from caraserve_cli.bench.recipe import COMPARISON, Recipe, parse_recipe
from caraserve_cli.bench.recipe_file import read_recipe
from caraserve_cli.bench.throughput_recipe import THROUGHPUT, ThroughputRecipe, parse_throughput


def load_any_recipe(path: Path) -> Recipe | ThroughputRecipe:
    """The recipe in a file, whatever its kind.

    Raises:
        InputError: the file cannot be read.
        OptionError: it is no TOML, has an unknown key, or a wrong value.
    """
    table = read_recipe(path)
    if table.choice("kind", (COMPARISON, THROUGHPUT), COMPARISON) == THROUGHPUT:
        return parse_throughput(table, path)
    return parse_recipe(table, path)
