"""What every kind of result says of the program and its packages, and how a result is written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import orjson

import caraserve_cli
from caraserve_cli.errors import OutputError

_COMMIT_VARIABLE = "CARASERVE_COMMIT"


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those that are installed."""
    found: dict[str, str] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def code_commit() -> str | None:
    """The commit that this checkout is at, with `-dirty` where it has changes; None where nothing says it.

    A copy of a checkout without its history can be told by the environment variable CARASERVE_COMMIT.
    """
    if commit := os.environ.get(_COMMIT_VARIABLE):
        return commit
    root = Path(caraserve_cli.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, content: Mapping[str, object], option: str = "--json") -> None:
    """Write what `option` asks for.

    Raises:
        OutputError: it cannot be written.
    """
    _write(path, orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n", option)


def write_text(path: Path, content: str, option: str = "--json") -> None:
    """Write what goes beside what `option` asks for.

    Raises:
        OutputError: it cannot be written.
    """
    _write(path, content.encode(), option)


def _write(path: Path, content: bytes, option: str) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{option}: '{path}' cannot be written: {error.strerror}") from error
