"""The keys of one TOML table of a recipe, taken one at a time, each with its check.

Knows types, ranges and how to word a refusal; does not know which keys a recipe has. A key that nobody took
is refused by name when the table is closed.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Collection, Mapping
from typing import TypeGuard, TypeVar, cast

from caraserve_cli.config import parse_size
from caraserve_cli.core import LORA_MODULES
from caraserve_cli.errors import OptionError

_Value = TypeVar("_Value")


class RecipeTable:
    """One table. Every method raises OptionError, naming the file and the key.

    Args:
        values: as `tomllib` reads them.
        where: the recipe's file, and the table in it, for messages.
    """

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._values = values
        self._where = where
        self._taken: set[str] = set()

    @property
    def values(self) -> Mapping[str, object]:
        """All keys, unchecked."""
        return self._values

    def text(self, key: str) -> str:
        """A text that must be there and not be empty."""
        return self._checked(key, self._take(key, str, "a text"), bool, "a text that is not empty")

    def optional_text(self, key: str) -> str | None:
        """A text that is not empty, or None where the key is left out."""
        self._taken.add(key)
        return self.text(key) if key in self._values else None

    def choice(self, key: str, choices: Collection[str], default: str) -> str:
        """One of `choices`."""
        value = self._take(key, str, "a text", default)
        return self._checked(key, value, lambda text: text in choices, f"one of {', '.join(choices)}")

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts that must be there; it may be empty."""
        values = self._take(key, list, "a list of texts")
        return tuple(
            self._checked(key, value, lambda item: isinstance(item, str), "a list of texts")
            for value in values
        )

    def lora_modules(self, key: str) -> tuple[str, ...]:
        """A list of modules that adapters can change, in the order of the file; it must be there."""
        modules = self.texts(key)
        if not modules or len(set(modules)) < len(modules) or not set(modules) <= set(LORA_MODULES):
            must_be = f"a list of modules without repetition, from {', '.join(LORA_MODULES)}"
            raise self.wrong(key, must_be, list(modules))
        return modules

    def count(self, key: str, default: int | None, low: int = 1) -> int:
        """A whole number of at least `low`; without a default it must be there."""
        value = self._take(key, int, "a whole number", default)
        # Python reads what is larger than TOML's integers.
        value = self._checked(key, value, lambda number: number < 2**63, "a number of 64 bits")
        return self._checked(key, value, lambda number: number >= low, f"at least {low}")

    def optional_count(self, key: str) -> int | None:
        """A whole number of at least 1, or None where the key is left out."""
        self._taken.add(key)
        return self.count(key, None) if key in self._values else None

    def counts(self, key: str) -> tuple[int, ...]:
        """A list of whole numbers of at least 1 that must be there and not be empty."""
        must_be = "a list of whole numbers above zero"
        values = self._checked(key, self._take(key, list, must_be), bool, must_be)
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value < 2**63:
                raise self.wrong(key, must_be, value)
        return tuple(values)

    def distinct_counts(self, key: str) -> tuple[int, ...]:
        """`counts`, without repetition."""
        values = self.counts(key)
        if len(set(values)) < len(values):
            raise self.wrong(key, "a list without repetition", list(values))
        return values

    def flag(self, key: str) -> bool:
        """True or false; false where the key is left out."""
        self._taken.add(key)
        value = self._values.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def size(self, key: str, default: str | None) -> str | None:
        """A text that `parse_size` understands, or `default` where the key is left out."""
        self._taken.add(key)
        if key not in self._values:
            return default
        text = self.text(key)
        parse_size(f"{self._where}: '{key}'", text, total_bytes=2**40)
        return text

    def optional_positive(self, key: str) -> float | None:
        """A number above zero, or None where the key is left out."""
        self._taken.add(key)
        return self.positive(key) if key in self._values else None

    def positive(self, key: str) -> float:
        """A number above zero that must be there."""
        value = self._values.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        self._taken.add(key)
        if not isinstance(value, float) or not 0 < value < float("inf"):
            raise self.wrong(key, "a number above zero", value)
        return value

    def zero_or_more(self, key: str) -> float:
        """A number of at least zero that must be there."""
        value = self._values.get(key)
        self._taken.add(key)
        if not is_number(value) or value < 0:
            raise self.wrong(key, "a number of at least zero", value)
        return float(value)

    def positives(self, key: str) -> tuple[float, ...]:
        """A list of numbers above zero that must be there and not be empty."""
        must_be = "a list of numbers above zero"
        values = self._checked(key, self._take(key, list, must_be), bool, must_be)
        for value in values:
            if not is_number(value) or value <= 0:
                raise self.wrong(key, must_be, value)
        return tuple(map(float, values))

    def optional_table(self, key: str) -> RecipeTable | None:
        """A table below this one, or None where it is left out."""
        self._taken.add(key)
        return self.table(key) if key in self._values else None

    def table(self, key: str) -> RecipeTable:
        """A table below this one that must be there."""
        values = self._take(key, dict, f"a table, written [{key}]")
        return RecipeTable(cast("dict[str, object]", values), f"{self._where}, [{key}]")

    def tables(self, key: str) -> list[RecipeTable]:
        """The tables of an array of tables; none where the key is left out."""
        must_be = f"tables, each written [[{key}]]"
        tables: list[RecipeTable] = []
        for values in self._take(key, list, must_be, []):
            if not isinstance(values, dict):
                raise self.wrong(key, must_be, values)
            tables.append(RecipeTable(cast("dict[str, object]", values), f"{self._where}, [[{key}]]"))
        return tables

    def refuse(self, key: str, reason: str) -> None:
        """Refuse a key that has no meaning beside the values of others."""
        if key in self._values:
            raise OptionError(f"{self._where}: '{key}' has no meaning {reason}; leave it out")

    def close(self) -> None:
        """Refuse any key that was not taken, naming the closest that could be."""
        for key in self._values:
            if key not in self._taken:
                close = difflib.get_close_matches(key, self._taken, n=1)
                hint = (
                    f"did you mean '{close[0]}'?" if close else f"known are {', '.join(sorted(self._taken))}"
                )
                raise OptionError(f"{self._where}: unknown key '{key}'; {hint}")

    def wrong(self, key: str, must_be: str, value: object) -> OptionError:
        """The error to raise for a key with a wrong value."""
        if value is None:
            return OptionError(f"{self._where}: '{key}' is missing; it must be {must_be}")
        return OptionError(f"{self._where}: '{key}' must be {must_be}, got {value!r}")

    def _take(self, key: str, kind: type[_Value], must_be: str, default: _Value | None = None) -> _Value:
        self._taken.add(key)
        value = self._values.get(key, default)
        # TOML's true and false are no numbers, though Python's are.
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(key, must_be, value)
        return value

    def _checked(self, key: str, value: _Value, is_right: Callable[[_Value], bool], must_be: str) -> _Value:
        if not is_right(value):
            raise self.wrong(key, must_be, value)
        return value


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of TOML is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
