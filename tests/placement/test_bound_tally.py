"""Bounds of any size are counted, and nobody is warned of the largest."""

from __future__ import annotations

import math
import warnings

import pytest

from caraserve_cli.placement.bound_tally import BoundTally
from caraserve_cli.placement.nearness import nearness_there


@pytest.mark.parametrize("bound_ms", [-1e300, 0.0, 5e-324, 1.0, 16_384.0, 1e39, 1.7e308])
def test_any_bound_comes_and_goes(bound_ms: float) -> None:
    tally = BoundTally(2)
    token_ms = min(max(bound_ms, 0.125), 16_000.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tally.add(1, bound_ms)
        assert tally.common_ms(0, 1, token_ms) == math.inf
        assert 0 < tally.common_ms(1, 1, token_ms) < math.inf
        tally.add(1, bound_ms, -1)
        tally.add(1, math.inf)
        assert tally.common_ms(1, 1, token_ms) == math.inf


@pytest.mark.parametrize("token_ms", [2.0, 20.0, 34.0, 36.0])
def test_near_the_common_bound_all_count_as_much_as_near_their_own(token_ms: float) -> None:
    """As far as cells tell; three have no bound."""
    bounds_ms = [36.0, 36.0, 45.0, 60.0, 1.0]
    tally = BoundTally(1)
    for bound_ms in bounds_ms:
        tally.add(0, bound_ms)
    right = 3 + sum(nearness_there(token_ms, bound_ms) for bound_ms in bounds_ms)
    common_ms = tally.common_ms(0, 8, token_ms)
    assert 8 * nearness_there(token_ms, common_ms) == pytest.approx(right, rel=0.05)


@pytest.mark.parametrize("token_ms", [1.0, 30.0, 34.0, 39.0])
def test_of_equal_bounds_it_is_that_one(token_ms: float) -> None:
    tally = BoundTally(1)
    for _ in range(5):
        tally.add(0, 36.0)
    assert tally.common_ms(0, 5, token_ms) == pytest.approx(36, rel=0.01)
