"""A recipe's file as the table of its keys. Knows TOML, not what a recipe holds."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
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


def named_files(path: Path) -> list[tuple[str, Path]]:
    """Key and file of all texts in the recipe in `path` that name a file beside it, such as its requests.

    Raises:
        InputError: the recipe cannot be read.
        OptionError: it is no TOML.
    """
    texts = _texts("", read_recipe(path).values)
    # A text that no file can be called is none: `Path.is_file` would raise.
    return [(key, path.parent / text) for key, text in texts if os.path.isfile(path.parent / text)]


def _texts(key: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(name, each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(key, each)
