"""The keys of one JSON object, taken one at a time, each with its check.

Knows types, ranges and how to word a refusal; does not know which keys a request has.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

import orjson

from caraserve_cli.errors import RowError, RowErrorCode

# Longest excerpt of a user's value in a message.
_MAX_EXCERPT_CHARS = 60

_DefaultInt = TypeVar("_DefaultInt", bound=int | None)
_DefaultFloat = TypeVar("_DefaultFloat", bound=float | None)


@dataclass(frozen=True, slots=True)
class Interval:
    """The numbers from `low` to `high`; `above_low` leaves `low` itself out."""

    low: float
    high: float = math.inf
    above_low: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above_low else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low}" if self.above_low else f"of at least {self.low}"
        return (
            f"above {self.low} and at most {self.high}"
            if self.above_low
            else f"from {self.low} to {self.high}"
        )


def excerpt(value: object) -> str:
    """A value as a message shows it: a scalar as JSON on one line, shortened; of the rest only the kind."""
    if isinstance(value, list):
        return "a list"
    if isinstance(value, Mapping):
        return "an object"
    # Options can be what no JSON holds: nan, inf.
    is_no_json = isinstance(value, float) and not math.isfinite(value)
    text = str(value) if is_no_json else orjson.dumps(value).decode()
    return text if len(text) <= _MAX_EXCERPT_CHARS else text[: _MAX_EXCERPT_CHARS - 1] + "…"


class Fields:
    """One JSON object of a request. A key that is absent or null has its default.

    Every method that takes a value raises RowError(INVALID_REQUEST), naming the key, what it must be and
    what it is. `request_id` is what these errors carry.
    """

    def __init__(self, values: Mapping[str, object], request_id: str | None = None) -> None:
        self._values = values
        self.request_id = request_id

    def __contains__(self, key: str) -> bool:
        """Whether the key is there with a value other than null."""
        return self._values.get(key) is not None

    def has_key(self, key: str) -> bool:
        """Whether the key is there, null included."""
        return key in self._values

    def refused(self, message: str) -> RowError:
        """The error to raise for something wrong with this object."""
        return RowError(RowErrorCode.INVALID_REQUEST, message, self.request_id)

    def wrong(self, key: str, must_be: str, value: object, hint: str = "") -> RowError:
        """The error to raise for a key with a wrong value."""
        return self.refused(f"{key} must be {must_be}, got {excerpt(value)}{hint}")

    def allow_only(self, known_keys: Collection[str]) -> None:
        """Refuse any key that is not among `known_keys`, naming the closest known one."""
        for key in self._values:
            if key not in known_keys:
                close = difflib.get_close_matches(key, known_keys, n=1)
                hint = f'; did you mean "{close[0]}"?' if close else ""
                raise self.refused(f"unknown key {excerpt(key)}{hint}")

    def integer(self, key: str, default: _DefaultInt, interval: Interval) -> int | _DefaultInt:
        value = self._values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or value not in interval:
            raise self.wrong(key, f"an integer {interval}", value)
        return value

    def number(self, key: str, default: _DefaultFloat, interval: Interval) -> float | _DefaultFloat:
        value = self._values.get(key)
        if value is None:
            return default
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
            or value not in interval
        ):
            raise self.wrong(key, f"a number {interval}", value)
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self._values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def text(self, key: str) -> str | None:
        """A non-empty string; None where there is none."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, str):
            raise self.wrong(key, "a string", value)
        if not value:
            raise self.refused(f"{key} is empty")
        return value

    def items(self, key: str, of: str) -> list[object] | None:
        """A list, its items not yet checked; None where there is none. `of` names what it should hold."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, list):
            raise self.wrong(key, f"a list of {of}", value)
        return value

    def strings(self, key: str) -> tuple[str, ...] | None:
        """Non-empty strings, one or a list of them; None where there are none."""
        value = self._values.get(key)
        if value is None:
            return None
        for item in value if isinstance(value, list) else [value]:
            if not isinstance(item, str) or not item:
                raise self.wrong(
                    key, "a non-empty string or a list of them", value if item is value else item
                )
        return tuple(value) if isinstance(value, list) else (str(value),)

    def token_ids(self, key: str) -> tuple[int, ...] | None:
        """A list of integers of at least 0; None where there is none."""
        values = self.items(key, "token ids")
        if values is None:
            return None
        token_ids: list[int] = []
        for index, value in enumerate(values):
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise self.wrong(f"{key}[{index}]", "an integer of at least 0", value)
            token_ids.append(value)
        return tuple(token_ids)

    def json_object(self, key: str) -> dict[str, object]:
        """An object that can be written out again; {} where there is none."""
        value = self._values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(key, "an object", value)
        try:
            # orjson reads deeper nesting than it writes: found out now, not when the answer is written.
            orjson.dumps({key: value})
        except orjson.JSONEncodeError:
            raise self.refused(f"{key} is nested too deeply") from None
        return value
