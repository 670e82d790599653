"""Least squares: a known line, noise, and what is no line."""

from __future__ import annotations

import random

import pytest

from caraserve_cli.bench.line_fit import fit_line


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
