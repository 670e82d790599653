"""A profile as JSON and back. What is not exactly a profile of this version is refused, not guessed at."""

from __future__ import annotations

import math
import types
import typing
from dataclasses import MISSING, asdict, fields, is_dataclass

import orjson

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.profile import MachineProfile

# Goes up with every change of what a profile's numbers mean. A field that is new has a default: profiles of
# before it are read, and lack what it says.
PROFILE_VERSION = 2

_PROFILE_AGAIN = "run `caraserve profile` again"


def to_json(profile: MachineProfile) -> bytes:
    """The profile as indented JSON, with its version first."""
    content = {"version": PROFILE_VERSION, **asdict(profile)}
    return orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n"


def from_json(content: bytes, where: str) -> MachineProfile:
    """The profile that `to_json` wrote.

    Args:
        content: JSON.
        where: names the file where it is refused.

    Raises:
        ProfileError: it is no profile, or one of another version.
    """
    try:
        table = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ProfileError(f"profile '{where}' is unreadable: {error}; {_PROFILE_AGAIN}") from error
    if not isinstance(table, dict):
        raise ProfileError(f"profile '{where}' is unreadable: it is no JSON object; {_PROFILE_AGAIN}")
    version = table.pop("version", None)
    if version != PROFILE_VERSION:
        raise ProfileError(
            f"profile '{where}' has version {version}, and this program reads {PROFILE_VERSION}; "
            f"{_PROFILE_AGAIN}"
        )
    try:
        profile = _read(MachineProfile, table, "profile")
    except ValueError as error:
        raise ProfileError(f"profile '{where}' is unreadable: {error}; {_PROFILE_AGAIN}") from error
    assert isinstance(profile, MachineProfile)
    return profile


def _read(kind: typing.Any, value: object, key: str) -> object:
    """`value` as an object of type `kind`.

    Raises:
        ValueError: it is none; the message names its key.
    """
    if isinstance(kind, types.UnionType):  # X | None
        present = next(each for each in typing.get_args(kind) if each is not type(None))
        return None if value is None else _read(present, value, key)
    if is_dataclass(kind):
        return _read_dataclass(kind, value, key)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"'{key}' is no list")
        return tuple(_read(typing.get_args(kind)[0], each, key) for each in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"'{key}' is no {kind.__name__}")
    return value


def _read_dataclass(kind: typing.Any, value: object, key: str) -> object:
    if not isinstance(value, dict):
        raise ValueError(f"'{key}' is no object")
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    needed = {field.name for field in fields(kind) if field.default is MISSING}
    if not needed <= set(value) <= set(names):
        wrong = ", ".join(sorted((needed - set(value)) | (set(value) - set(names))))
        raise ValueError(f"'{key}' lacks or does not know: {wrong}")
    return kind(**{name: _read(hints[name], value[name], name) for name in names if name in value})
