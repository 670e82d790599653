"""Percentiles of a stream of values in bounded memory.

Knows nothing of requests or units. Few values are kept as they are, so that small runs and rarely used
adapters get exact percentiles; many go into a DDSketch, whose size depends on the spread of the values and
not on their number.
"""

from __future__ import annotations

import itertools
import math
from array import array
from bisect import bisect_right
from typing import TypedDict

from ddsketch import LogCollapsingLowestDenseDDSketch

RELATIVE_ACCURACY = 0.005
QUANTILES = (0.50, 0.90, 0.95, 0.99)

# 256 doubles take 2 KB, about what a sketch of a narrow spread takes.
_MAX_EXACT_VALUES = 256
# At 0.5% a bin spans 1%: 2048 bins hold the accuracy over a factor of 8e8 (1 us to 13 minutes). Values
# further below the largest share the lowest bin.
_MAX_BINS = 2048


# Edges of histograms, alike for all of them so that two runs can be laid over each other: a bin is 12% wide.
_BINS_PER_DECADE = 20
_MAX_HISTOGRAM_BINS = 100


class Histogram(TypedDict):
    """`counts[i]` values lie in (`edges[i]`, `edges[i + 1]`]; the first bin holds the lesser ones too."""

    edges: list[float]
    counts: list[int]


class Distribution:
    """Count, mean, extremes and quantiles of values that are zero or more.

    A quantile q is the smallest value that at least the share q of the values does not exceed: exact up to
    256 values, within RELATIVE_ACCURACY beyond. Takes at most 2 KB below that, 3 to 70 KB beyond.
    """

    __slots__ = ("_count", "_exact", "_maximum", "_minimum", "_sketch", "_sum")

    def __init__(self) -> None:
        self._exact = array("d")
        self._sketch: LogCollapsingLowestDenseDDSketch | None = None
        self._count = 0
        self._sum = 0.0
        self._minimum = math.inf
        self._maximum = -math.inf

    @property
    def count(self) -> int:
        return self._count

    @property
    def mean(self) -> float | None:
        return self._sum / self._count if self._count else None

    @property
    def minimum(self) -> float | None:
        return self._minimum if self._count else None

    @property
    def maximum(self) -> float | None:
        return self._maximum if self._count else None

    def add(self, value: float) -> None:
        self._count += 1
        self._sum += value
        self._minimum = min(self._minimum, value)
        self._maximum = max(self._maximum, value)
        self._insert(value)

    def merge(self, other: Distribution) -> None:
        """Take in all values of `other`, which stays as it is."""
        self._count += other._count
        self._sum += other._sum
        self._minimum = min(self._minimum, other._minimum)
        self._maximum = max(self._maximum, other._maximum)
        if other._sketch is not None:
            self._begin_sketch().merge(other._sketch)
        for value in other._exact:
            self._insert(value)

    def quantile(self, q: float) -> float | None:
        """The value at 0 < q <= 1; None when there are no values."""
        if not self._count:
            return None
        # q * count is rounded first: 0.95 * 20 must be the 19th value, not the 20th.
        return self._at(max(math.ceil(round(q * self._count, 9)) - 1, 0))

    def count_at_most(self, value: float) -> int:
        """How many values do not exceed `value`; as exact as a quantile."""
        return bisect_right(range(self._count), value, key=self._at)

    def histogram(self) -> Histogram | None:
        """Counts in bins that are equally wide on a logarithmic scale; None where no value is above 0."""
        if not self._count or self._maximum <= 0:
            return None
        last = math.ceil(_BINS_PER_DECADE * math.log10(self._maximum) - 1e-9)
        first = last - _MAX_HISTOGRAM_BINS
        if self._minimum > 0:
            first = max(first, math.ceil(_BINS_PER_DECADE * math.log10(self._minimum)) - 1)
        first = min(first, last - 1)
        edges = [10 ** (power / _BINS_PER_DECADE) for power in range(first, last + 1)]
        below = [0, *(self.count_at_most(edge) for edge in edges[1:-1]), self._count]
        return {"edges": edges, "counts": [high - low for low, high in itertools.pairwise(below)]}

    def _at(self, position: int) -> float:
        """The value at a position of their order, from 0."""
        if self._sketch is None:
            return sorted(self._exact)[position]
        if position == self._count - 1:
            return self._maximum
        # Half a position further, so that rounding cannot fall back to the value before.
        # `or`: the sketch tells None only when it is empty.
        value = self._sketch.get_quantile_value((position + 0.5) / (self._count - 1)) or 0.0
        return min(max(value, self._minimum), self._maximum)

    def _insert(self, value: float) -> None:
        if self._sketch is not None:
            self._sketch.add(value)
            return
        self._exact.append(value)
        if len(self._exact) > _MAX_EXACT_VALUES:
            self._begin_sketch()

    def _begin_sketch(self) -> LogCollapsingLowestDenseDDSketch:
        if self._sketch is None:
            self._sketch = LogCollapsingLowestDenseDDSketch(RELATIVE_ACCURACY, _MAX_BINS)
            for value in self._exact:
                self._sketch.add(value)
            self._exact = array("d")
        return self._sketch
