"""What a millisecond counts near a bound: the curve, at its joints, and where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caraserve_cli.placement.nearness import nearness


@pytest.mark.parametrize(
    ("token_ms", "counts"), [(0, 1), (50, 2), (75, 4), (90, 10), (100, 20), (110, 30), (330, 10)]
)
def test_the_curve(token_ms: float, counts: float) -> None:
    """Of a bound of 100 ms."""
    assert nearness(token_ms, 100.0) == pytest.approx(counts)


def test_without_a_bound_a_millisecond_is_one() -> None:
    assert nearness(np.array([0.0, 40, 1e9]), math.inf).tolist() == [1, 1, 1]


@pytest.mark.parametrize("bound_ms", [0.0, -5.0, -1e300])
def test_a_bound_that_has_passed_is_lost(bound_ms: float) -> None:
    with np.errstate(all="raise"):
        assert nearness(np.array([0.0, 30.0]), bound_ms).tolist() == [1, 1]


def test_what_it_takes_never_counts_less_for_taking_longer() -> None:
    token_ms = np.linspace(0, 6000, 60_001)
    counted_ms = token_ms * nearness(token_ms, 100.0)
    assert (np.diff(counted_ms) >= -1e-9).all()
    assert nearness(token_ms, 100.0).min() == 1
