"""The figures of a result, whatever its kind, each by the way to it in the JSON of the result: names of
cases, strategies and systems, then the key. Knows no metrics and no kind of benchmark.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeGuard, cast

# What tells an item of a list from the others.
_LABELS = ("name", "strategy", "system")
# What a recipe requires is judged by the run itself, and measured elsewhere in the result.
_JUDGED_ELSEWHERE = ("requirements",)
# Lists whose items have names of their own; sections of kernels do not.
_UNNAMED_LISTS = ("cases", "systems", "ratios", "results")


def figures_of(part: Mapping[str, object], way: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    """Name → a spread (see `is_spread`) or a number, true and false not being some, of all that a part of a
    result has; `way` leads to the part."""
    for key, value in part.items():
        if key in _JUDGED_ELSEWHERE:
            continue
        if is_spread(value) or is_figure(value):
            yield ": ".join((*way, key)), value
        elif isinstance(value, Mapping):
            yield from figures_of(value, (*way, key))
        elif isinstance(value, list | tuple):
            for item in value:
                if isinstance(item, Mapping) and (label := _label(item)):
                    section = () if key in _UNNAMED_LISTS else (key,)
                    yield from figures_of(item, (*way, *section, label))


def repeats_of(spread: object) -> tuple[float, ...]:
    """The values of all repeats of a spread."""
    return tuple(cast("Mapping[str, Sequence[float]]", spread)["values"])


def find_figure(result: Mapping[str, object], pattern: str) -> float | None:
    """The one figure whose name `pattern` fits, with * for anything: the median of a spread; None where there
    is none, several, or what is no number."""
    # A bracket is no range here: names of cases may have some.
    literal = pattern.replace("[", "[[]")
    found = [value for name, value in figures_of(result) if fnmatchcase(name, literal)]
    if len(found) != 1:
        return None
    values = repeats_of(found[0]) if is_spread(found[0]) else (found[0],)
    figures = [value for value in values if is_figure(value) and math.isfinite(value)]
    return statistics.median(figures) if figures and len(figures) == len(values) else None


def is_spread(value: object) -> bool:
    """Whether it is a `comparison.Spread`, as JSON has it."""
    return isinstance(value, Mapping) and {"values", "median", "lowest", "highest"} <= value.keys()


def is_figure(value: object) -> TypeGuard[float]:
    """Whether it is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(item: Mapping[str, object]) -> str | None:
    """Without, an item has no figures."""
    if "ours" in item and "over" in item:
        return f"{item['ours']} / {item['over']}"
    return next((str(item[key]) for key in _LABELS if item.get(key)), None)
