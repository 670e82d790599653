"""A cost that is a sum of four terms, fitted to points that come one after another: recursive least squares
that forget, in plain Python, for numpy takes longer for four numbers.

Errors count as shares of what was predicted. A point far off what the fit expects moves it no more than one at
the edge of it: a step in which a graph was captured, or a host that was preempted, says nothing of the next.
Several in a row say that something has changed, and the fit begins to trust what is measured again.
"""

from __future__ import annotations

from math import sqrt
from typing import TypeAlias

Terms: TypeAlias = tuple[float, float, float, float]

# With 0.98 the last 50 points decide. Chosen, not measured.
_MEMORY = 0.98
# Shares of a prediction by which measured times scatter: at first, and at least.
_FIRST_NOISE, _LEAST_NOISE = 0.05, 0.01
# How fast that share follows what is seen.
_NOISE_PACE = 0.05
# Standard deviations from which a point is an outlier, and how many of them in a row are none.
_FAR = 4.0
_MOST_FAR = 5


class OnlineFit:
    """cost = Σ weight · term.

    Args:
        weights: believed at first.
        spreads: by how much each of them may be wrong: one standard deviation.
    """

    def __init__(self, weights: Terms, spreads: Terms) -> None:
        self.weights = weights
        self.num_points = 0
        self._first = [[spread**2 if i == j else 0.0 for j in range(4)] for i, spread in enumerate(spreads)]
        self._covariance = self._first
        self._most_trace = sum(spread**2 for spread in spreads)
        self._noise = _FIRST_NOISE
        self._num_far = 0

    def predict(self, terms: Terms) -> float:
        """The cost of a point that is not measured yet."""
        a, b, c, d = self.weights
        t, u, v, w = terms
        return a * t + b * u + c * v + d * w

    def learn(self, terms: Terms, cost: float) -> None:
        """A point was measured; its cost is above 0."""
        self.num_points += 1
        predicted = self.predict(terms)
        scale = max(predicted, cost / 10)
        t, u, v, w = terms
        towards = [row[0] * t + row[1] * u + row[2] * v + row[3] * w for row in self._covariance]
        p, q, r, s = towards
        variance = p * t + q * u + r * v + s * w + (self._noise * scale) ** 2
        error, edge = cost - predicted, _FAR * sqrt(variance)
        is_far = abs(error) > edge
        error = max(-edge, min(edge, error))
        pace = error / variance
        a, b, c, d = self.weights
        self.weights = (a + p * pace, b + q * pace, c + r * pace, d + s * pace)
        self._noise += _NOISE_PACE * (min(abs(error) / scale, _FAR * self._noise) - self._noise)
        self._noise = max(_LEAST_NOISE, self._noise)
        self._num_far = self._num_far + 1 if is_far else 0
        if self._num_far == _MOST_FAR:
            self._covariance, self._num_far = self._first, 0
            return
        reduced = [
            [cell - x * y / variance for cell, y in zip(row, towards, strict=True)]
            for row, x in zip(self._covariance, towards, strict=True)
        ]
        # What nothing was learned of for long would be forgotten without end.
        if sum(reduced[i][i] for i in range(4)) / _MEMORY < self._most_trace:
            reduced = [[cell / _MEMORY for cell in row] for row in reduced]
        self._covariance = reduced
