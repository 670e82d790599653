"""One measured figure of a benchmark: which way is better, and how much worse it may become. Knows no files,
and no kind of benchmark.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Direction(StrEnum):
    """Which values are better."""

    LOWER = "lower"
    HIGHER = "higher"


class Basis(StrEnum):
    """What a figure can be compared with.

    RATIO: two things of one run, so that it means something on any machine.
    ABSOLUTE: milliseconds, tokens/s; it means something on the same hardware alone.
    YARDSTICK: as absolute, of something that is not ours: it tells whether the machine is what it was.
    """

    RATIO = "ratio"
    ABSOLUTE = "absolute"
    YARDSTICK = "yardstick"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure by name, each value from a process of its own.

    Attributes:
        unit: `ms`, `tokens/s`, `x` for a ratio, ….
        direction: None where nothing says it; such a figure is shown and not judged.
        tolerance: by what fraction it may become worse.
        is_tail: a high percentile or a maximum, which no number of repeats makes narrow.
        values: none below zero.
    """

    name: str
    unit: str
    basis: Basis
    direction: Direction | None
    tolerance: float
    is_tail: bool
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def has_zero(self) -> bool:
        return min(self.values) == 0

    @property
    def is_judged(self) -> bool:
        return self.direction is not None and self.basis is not Basis.YARDSTICK

    def having(self, values: Sequence[float]) -> Metric:
        """The same figure with other values."""
        return replace(self, values=tuple(values))
