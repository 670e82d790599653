"""The line of least squares through points, and how well it fits. Knows nothing of what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """y = alpha · x + beta; `r2` is the share of y's variance that it explains, 1 where y does not vary."""

    alpha: float
    beta: float
    r2: float


def fit_line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """The line through points of at least two different x.

    Raises:
        ValueError: there are fewer.
    """
    if len(set(xs)) < 2:
        raise ValueError(f"a line needs two different x, got {sorted(set(xs))}")
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    sum_xx = sum((x - mean_x) ** 2 for x in xs)
    sum_xy = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    alpha = sum_xy / sum_xx
    beta = mean_y - alpha * mean_x
    left = sum((y - alpha * x - beta) ** 2 for x, y in zip(xs, ys, strict=True))
    total = sum((y - mean_y) ** 2 for y in ys)
    return Line(alpha, beta, 1 - left / total if total else 1.0)
