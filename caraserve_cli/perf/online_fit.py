"""A cost that is a sum of four terms, fitted to points that come one by one: recursive least squares that
forget. In plain Python: for four numbers numpy's calls would take longer.

Errors count as shares of what was predicted. A point far off what the fit expects moves it no more than one
at the edge of it: a step in which a graph was captured, or a host that was preempted, says nothing of the
next. Several in a row say that something has changed, and the fit trusts what is measured again.
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
        a, b, c, d = (spread**2 for spread in spreads)
        # The upper half of the weights' covariance, row by row.
        self._first = (a, 0.0, 0.0, 0.0, b, 0.0, 0.0, c, 0.0, d)
        self._covariance = self._first
        self._most_trace = a + b + c + d
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
        aa, ab, ac, ad, bb, bc, bd, cc, cd, dd = self._covariance
        p = aa * t + ab * u + ac * v + ad * w
        q = ab * t + bb * u + bc * v + bd * w
        r = ac * t + bc * u + cc * v + cd * w
        s = ad * t + bd * u + cd * v + dd * w
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
        aa, bb = aa - p * p / variance, bb - q * q / variance
        cc, dd = cc - r * r / variance, dd - s * s / variance
        # What nothing was learned of for long would be forgotten without end.
        f = 1 / _MEMORY if (aa + bb + cc + dd) / _MEMORY < self._most_trace else 1.0
        g = f / variance
        self._covariance = (
            aa * f,
            ab * f - p * q * g,
            ac * f - p * r * g,
            ad * f - p * s * g,
            bb * f,
            bc * f - q * r * g,
            bd * f - q * s * g,
            cc * f,
            cd * f - r * s * g,
            dd * f,
        )
