"""run.json: what identifies a run, so that a resumed one cannot mix answers of two.

Knows any keys; which settings identify a run is the caller's to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import orjson

from caraserve_cli.errors import OutputError

MANIFEST_NAME = "run.json"
MANIFEST_DRAFT_NAME = "run.json.tmp"
# How to go on with the run, beside what identifies it; never compared.
COMMAND_KEY = "resume_command"

# Between the names of several files or folders in one value.
_BETWEEN = ", "
_PLACES = ("/", "hf://")

# What a run.json holds -> the same as this version would have written it.
Update: TypeAlias = Callable[[Mapping[str, object]], dict[str, object]]


def write_manifest(out_dir: Path, manifest: Mapping[str, object], command: str | None = None) -> None:
    """Write run.json; at no moment is there half a file.

    Args:
        out_dir: where.
        manifest: what identifies the run.
        command: the command line that goes on with it.

    Raises:
        OutputError: it cannot be written.
    """
    draft = out_dir / MANIFEST_DRAFT_NAME
    content = manifest if command is None else {**manifest, COMMAND_KEY: command}
    try:
        with draft.open("wb") as file:
            file.write(orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(out_dir / MANIFEST_NAME)
    except OSError as error:
        raise OutputError(f"'{out_dir / MANIFEST_NAME}' cannot be written: {error.strerror}") from None


def check_manifest(
    out_dir: Path, manifest: Mapping[str, object], update: Update = dict, *, typed: str | None = None
) -> None:
    """Refuse a folder whose run.json, updated, differs from `manifest` in any key.

    Args:
        out_dir: the folder.
        manifest: of the run that is to go on in it.
        update: as of `Journal.open`.
        typed: the command line that asks for it.

    Raises:
        OutputError: it differs, with every key and both values; it cannot be read, or is damaged.
    """
    earlier = _read(out_dir)
    command = earlier.pop(COMMAND_KEY, None)
    now: dict[str, object] = orjson.loads(orjson.dumps(manifest))  # tuples become lists, as in the file
    updated = update(earlier)
    differences = [
        _difference(key, earlier, now)
        for key in sorted(updated.keys() | now.keys())
        if _canonical(updated, key) != _canonical(now, key)
    ]
    if differences:
        raise OutputError(
            f"'{out_dir}' belongs to a run with other settings ({'; '.join(differences)}); "
            "resume with the same ones, or choose another --out" + _how_to_go_on(command, typed)
        )


def resume_command(out_dir: Path) -> str:
    """How to go on with the run in a folder, for a message: its command if that is known, or what to add.

    Raises:
        OutputError: run.json cannot be read, or is damaged.
    """
    command = _read(out_dir).get(COMMAND_KEY)
    return "--resume" if command is None else f"`{command}`"


def _how_to_go_on(command: object, typed: str | None) -> str:
    if not isinstance(command, str):
        return ""
    if typed is not None and _words(command) == _words(typed):
        return "; the command is the run's own: put back what has changed in the files it names"
    return f"; the command that goes on with it: `{command}`"


def _words(command: str) -> list[str]:
    """What a command line says, in whatever order, without how much it tells."""
    return sorted(set(command.split()) - {"-q", "--quiet", "-v", "--verbose"})


def _read(out_dir: Path) -> dict[str, object]:
    path = out_dir / MANIFEST_NAME
    try:
        content = orjson.loads(path.read_bytes())
    except OSError as error:
        raise OutputError(f"'{path}' cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise OutputError(f"'{path}' is damaged: not a JSON object; choose another --out")
    return content


def _difference(key: str, earlier: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Of lists of places what is new or gone: a pattern may match another file by now."""
    names = [str(each.get(key)).split(_BETWEEN) for each in (earlier, now)]
    are_places = all(name.startswith(_PLACES) for each in names for name in each)
    if are_places and max(map(len, names)) > 1:
        new = [name for name in names[1] if name not in names[0]]
        gone = [name for name in names[0] if name not in names[1]]
        parts = [
            f"{_BETWEEN.join(map(repr, each))} is {what}"
            for each, what in ((new, "new"), (gone, "gone"))
            if each
        ]
        if parts:
            return f"{key}: {' and '.join(parts)}"
    return f"{key} was {_shown(earlier, key)}, now is {_shown(now, key)}"


def _shown(manifest: Mapping[str, object], key: str) -> str:
    if key not in manifest:
        return "not set"
    # In full: two long paths may differ only where an excerpt would end.
    return orjson.dumps(manifest[key]).decode()


def _canonical(manifest: Mapping[str, object], key: str) -> tuple[bool, bytes]:
    """Whether the key is there, and its value; unlike `==`, true is not 1 here."""
    return key in manifest, orjson.dumps(manifest.get(key), option=orjson.OPT_SORT_KEYS)
