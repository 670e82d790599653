"""Which recipes there are: beside the package in a checkout, inside it in an installed wheel."""

from __future__ import annotations

import difflib
from pathlib import Path

import caraserve_cli
from caraserve_cli.errors import InputError, OptionError

DEFAULT_RECIPE = "quick"
_SUFFIX = ".toml"


def find_recipe(name: str) -> Path:
    """The file of the recipe that a user named: an own `.toml` file, or the name of an embedded recipe.

    Raises:
        OptionError: there is no such recipe.
        InputError: this installation has no recipes.
    """
    path = Path(name)
    if path.suffix == _SUFFIX:
        if not path.is_file():
            raise OptionError(
                f"RECIPE: there is no file '{name}'; embedded recipes have no {_SUFFIX} in their name"
            )
        return path
    embedded = {recipe.stem: recipe for recipe in embedded_recipes()}
    if name not in embedded:
        close = difflib.get_close_matches(name, embedded, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(embedded)}"
        raise OptionError(f"RECIPE: no recipe '{name}'; {hint} (or give a {_SUFFIX} file)")
    return embedded[name]


def embedded_recipes() -> list[Path]:
    """The files of the recipes that come with the program, by name.

    Raises:
        InputError: this installation has none.
    """
    package = Path(caraserve_cli.__file__).parent
    for folder in (package / "recipes", package.parent / "recipes"):
        recipes = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stem)
        if recipes:
            return recipes
    raise InputError(f"the embedded recipes are not part of this installation; give a {_SUFFIX} file")
