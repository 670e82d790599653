"""Least squares: a line through points, or a sum of terms that none may take away from; and how well it fits.

Knows nothing of what the points are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import numpy as np

from caraserve_cli.errors import ProfileError

# A model of time is believed if it explains this share of what was measured (the paper's own fits: 0.96), or
# if no point is further from it than this share of itself: where values hardly vary, there is little to
# explain. Chosen, not measured.
LEAST_R2 = 0.9
SMALL_RESIDUAL = 0.25
# Of all squares, what a set of terms must leave less than another one: rounding is no reason for it.
_ROUNDING = 1e-15
# What to do about points that follow no model.
MEASURE_AGAIN = "stop other work on this machine and run `caraserve profile` again"


@dataclass(frozen=True, slots=True)
class Line:
    """y = alpha · x + beta; `r2` is the share of y's variance that it explains, 1 where y does not vary."""

    alpha: float
    beta: float
    r2: float


@dataclass(frozen=True, slots=True)
class FitQuality:
    """How well a model fits its points.

    Attributes:
        r2: the share of the values' variance that it explains, 1 where they do not vary; or of their relative
            variation (`of_relative`).
        largest_residual: the largest distance of a point, as a share of the point's own value.
        num_points: how many there were.
        median_residual: the median of these distances; None in an older profile.
    """

    r2: float
    largest_residual: float
    num_points: int
    median_residual: float | None = None

    @staticmethod
    def of(predicted: Sequence[float], measured: Sequence[float]) -> FitQuality:
        """How well predictions meet what was measured; all measured values are above 0, and there is one."""
        mean = sum(measured) / len(measured)
        left = sum((y - p) ** 2 for y, p in zip(measured, predicted, strict=True))
        total = sum((y - mean) ** 2 for y in measured)
        residuals = [abs(y - p) / y for y, p in zip(measured, predicted, strict=True)]
        r2 = 1 - left / total if total else 1.0
        return FitQuality(r2, max(residuals), len(measured), median(residuals))

    @staticmethod
    def of_relative(predicted: Sequence[float], measured: Sequence[float]) -> FitQuality:
        """The same for values that span orders of magnitude, of which R² would see the largest few alone:
        each error is taken as a share of its point's own value, here and in what the best constant leaves,
        which is what there was to explain."""
        constant = sum(1 / y for y in measured) / sum(1 / y**2 for y in measured)
        errors = [p / y - 1 for y, p in zip(measured, predicted, strict=True)]
        left = sum(error**2 for error in errors)
        total = sum((constant / y - 1) ** 2 for y in measured)
        does_vary = min(measured) < max(measured)
        residuals = [abs(error) for error in errors]
        r2 = 1 - left / total if does_vary else 1.0
        return FitQuality(r2, max(residuals), len(measured), median(residuals))

    @property
    def is_good(self) -> bool:
        """Whether the model may be used."""
        return self.r2 >= LEAST_R2 or self.largest_residual <= SMALL_RESIDUAL

    def require(self, what: str, least_r2: float | None = None, advice: str = MEASURE_AGAIN) -> None:
        """Refuse a model that its points do not follow; with `least_r2`, one that explains less than that.

        Raises:
            ProfileError: the fit is not good; the message names `what` was modelled, and ends with `advice`.
        """
        if not (self.is_good if least_r2 is None else self.r2 >= least_r2):
            raise ProfileError(
                f"{what}: the {self.num_points} measured points follow no model (R² {self.r2:.2f}, at least "
                f"{least_r2 or LEAST_R2:g} is needed; the worst is {self.largest_residual:.0%} off); {advice}"
            )


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


def fit_costs(
    rows: Sequence[Sequence[float]], costs: Sequence[float], *, relative: bool = False
) -> tuple[float, ...]:
    """Coefficients, none below 0, of a cost that is a sum of terms: what costs more of something never costs
    less. The squares are weighted by 1 / cost, as for errors that grow with the square root of what is
    measured: small costs are not lost beside large ones (a link's latency), nor do they outvote them (its
    bandwidth).

    Exact: every set of terms is solved for, and the best without a negative coefficient taken; of sets that
    explain the same, such as a term that is the same in all points beside a constant, the first of the
    smallest.

    Args:
        rows: the terms of each point; few terms, for their sets are 2 to the power of their number.
        costs: the cost of each point, above 0.
        relative: whether errors grow with the cost itself, as the noise of busy cores does: the squares are
            then those of the errors' shares of the costs.

    Raises:
        ValueError: there are fewer points than terms, or a cost is not above 0.
    """
    if len(rows) < len(rows[0]) or min(costs) <= 0:
        raise ValueError(f"{len(rows)} points for {len(rows[0])} terms, the least cost {min(costs)}")
    measured = np.asarray(costs, dtype=np.float64)
    weights = 1 / measured if relative else 1 / np.sqrt(measured)
    targets = measured * weights
    weighted = np.asarray(rows, dtype=np.float64) * weights[:, None]
    # Terms of very different sizes (1 beside bytes) are brought to one, for the solver's sake.
    scale = np.abs(weighted).max(axis=0)
    scale[scale == 0] = 1
    scaled = weighted / scale
    num_terms = scaled.shape[1]
    all_squares = float((targets**2).sum())
    best, least_left = np.zeros(num_terms), all_squares
    for size in range(1, num_terms + 1):
        for chosen in combinations(range(num_terms), size):
            solved = np.linalg.lstsq(scaled[:, chosen], targets, rcond=None)[0]
            left = float(((scaled[:, chosen] @ solved - targets) ** 2).sum())
            if (solved >= 0).all() and least_left - left > _ROUNDING * all_squares:
                best, least_left = np.zeros(num_terms), left
                best[list(chosen)] = solved
    return tuple(float(each) for each in best / scale)
