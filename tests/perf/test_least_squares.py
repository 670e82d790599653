"""Least squares: known lines and costs, noise, and what fits nothing."""

from __future__ import annotations

import random

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.least_squares import FitQuality, fit_costs, fit_line


def test_a_known_line() -> None:
    xs = [1.0, 2.0, 7.0, 20.0]
    line = fit_line(xs, [0.5 * x - 3 for x in xs])
    assert (line.alpha, line.beta, line.r2) == pytest.approx((0.5, -3, 1))


def test_least_squares_of_three_points_by_hand() -> None:
    """Means 1 and 2; slope (1·1 + 1·2) / 2; residuals -0.5, 1, -0.5 of a variance 1 + 1 + 4."""
    line = fit_line([0, 1, 2], [0, 3, 3])
    assert (line.alpha, line.beta) == pytest.approx((1.5, 0.5))
    assert line.r2 == pytest.approx(1 - 1.5 / 6)


def test_noise_alone_is_explained_by_no_line() -> None:
    chosen = random.Random(3)
    xs = [float(x) for x in range(200)]
    assert fit_line(xs, [chosen.gauss() for _ in xs]).r2 < 0.05


def test_noise_lowers_r2() -> None:
    chosen = random.Random(4)
    xs = [float(x) for x in range(100)]
    little, much = (fit_line(xs, [2 * x + 5 + chosen.gauss(sigma=sigma) for x in xs]) for sigma in (1, 60))
    assert little.r2 > 0.99 > 0.96 > much.r2
    assert little.alpha == pytest.approx(2, rel=0.02)


def test_values_that_do_not_vary() -> None:
    line = fit_line([1, 2, 3], [4, 4, 4])
    assert (line.alpha, line.beta, line.r2) == (0, 4, 1)


def test_no_line_through_one_x() -> None:
    with pytest.raises(ValueError, match="two different x"):
        fit_line([2, 2], [1, 3])


def test_costs_of_several_terms() -> None:
    rows = [(1.0, x, x * x * 1e6) for x in (1.0, 2.0, 5.0, 9.0)]
    assert fit_costs(rows, [3 * a + 2 * b + 1e-6 * c for a, b, c in rows]) == pytest.approx((3, 2, 1e-6))


def test_no_cost_is_negative() -> None:
    """The line through these points falls; what does not fall is their level."""
    constant, slope = fit_costs([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)], [2.0, 1.9, 1.8])
    assert slope == 0
    assert constant == pytest.approx(1.9, rel=0.01)


def test_small_costs_count_as_much_as_large_ones() -> None:
    """An error of 10 % at 1000 must not hide one of 10 % at 1."""
    constant, slope = fit_costs([(1.0, 0.0), (1.0, 1000.0), (1.0, 1000.0)], [1.0, 1100.0, 900.0])
    assert constant == pytest.approx(1, rel=0.01)
    assert 0.85 < slope < 1.1


def test_too_few_points_for_the_terms() -> None:
    with pytest.raises(ValueError, match="1 points for 2 terms"):
        fit_costs([(1.0, 2.0)], [1.0])


def test_little_variance_needs_no_explanation() -> None:
    """Where values hardly vary R² says nothing, and small errors are good."""
    flat = FitQuality.of([5.0, 5.0, 5.0], [5.1, 4.9, 5.0])
    assert flat.r2 < 0.1
    assert flat.is_good
    off = FitQuality.of([5.0, 5.0, 5.0], [9.0, 2.0, 4.0])
    assert not off.is_good
    with pytest.raises(ProfileError, match=r"^steps: the 3 measured points .*`caraserve profile` again$"):
        off.require("steps")


def test_relative_errors_are_a_share_of_each_point() -> None:
    """A point at 1 counts as much as one at 1000: of each pair the middle, by shares of 10 %."""
    rows = [(1.0, 0.0), (1.0, 0.0), (1.0, 1000.0), (1.0, 1000.0)]
    constant, slope = fit_costs(rows, [0.9, 1.1, 900.0, 1100.0], relative=True)
    assert constant == pytest.approx(sum(1 / y for y in (0.9, 1.1)) / sum(1 / y**2 for y in (0.9, 1.1)))
    assert constant + 1000 * slope == pytest.approx(1000 * constant)


def test_relative_r2_sees_small_values_beside_a_large_one() -> None:
    """Of small values none of the variation is explained: beside the large one only relative R² tells."""
    measured = [1.0, 2.0, 4.0, 400.0]
    predicted = [2.0, 2.0, 2.0, 400.0]
    assert FitQuality.of(predicted, measured).r2 > 0.99
    assert FitQuality.of_relative(predicted, measured).r2 < 0.5
    assert FitQuality.of_relative(measured, measured) == FitQuality(1.0, 0.0, 4, 0.0)
    assert FitQuality.of_relative([4.0, 4.0], [4.0, 4.0]).r2 == 1


def test_relative_r2_of_the_best_constant_is_nothing() -> None:
    """By hand: of 1 and 2 it is (1 + 1/2) / (1 + 1/4) = 1.2, off by 0.2 and 0.4."""
    quality = FitQuality.of_relative([1.2, 1.2], [1.0, 2.0])
    assert quality.r2 == pytest.approx(0)
    assert quality.largest_residual == pytest.approx(0.4)


def test_of_terms_that_are_the_same_the_first_has_the_cost() -> None:
    costs = fit_costs([(1.0, 1.0, x) for x in (1.0, 2.0, 3.0)], [2.1, 2.9, 4.0], relative=True)
    assert costs[0] > 0
    assert costs[1] == 0
