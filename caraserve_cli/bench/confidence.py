"""How sure a mean of a few repeats is. Knows no units and no files."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Below this many values an interval says nothing: Student's t of 95% is beyond 3, and rising.
MIN_VALUES = 5

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the mean lies with 95% confidence."""

    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval | None:
    """Student's t interval of the mean of independent values; None for fewer than MIN_VALUES."""
    if len(values) < MIN_VALUES:
        return None
    mean = statistics.fmean(values)
    half = student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean - half, mean + half)


def student_t(degrees: float) -> float:
    """The 97.5% quantile of Student's t with at least 4 degrees of freedom, to 0.001.

    Expanded about the normal quantile in powers of 1 / degrees (Abramowitz and Stegun, 26.7.5).
    """
    z = statistics.NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return sum(term / float(degrees**power) for power, term in enumerate(terms))
