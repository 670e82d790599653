"""A recipe's file as the table of its keys. Knows TOML, not what a recipe holds."""

from __future__ import annotations

import tomllib
from pathlib import Path

from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.errors import InputError, OptionError


def read_recipe(path: Path) -> RecipeTable:
    """All keys of a recipe, unchecked.

    Raises:
        InputError: the file cannot be read.
        OptionError: it is no TOML.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"recipe '{path}' cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OptionError(f"recipe '{path}' is not UTF-8; save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f"recipe '{path}' is not TOML: {error}") from error
    return RecipeTable(values, str(path))


def base_beside(path: Path, base: str) -> str:
    """What `--base` takes: a folder beside the recipe in `path` where there is one, else `base` itself."""
    folder = path.parent / base
    return str(folder) if folder.is_dir() else base
