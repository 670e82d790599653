"""What a millisecond counts near a bound: the curve, at its joints, and where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caraserve_cli.placement.nearness import bound_of, nearness, nearness_there


@pytest.mark.parametrize(
    ("token_ms", "counts"), [(0, 1), (75, 2), (90, 10**0.5), (100, 1.5 * 10**0.5), (109.9, 1.995 * 10**0.5)]
)
def test_the_curve(token_ms: float, counts: float) -> None:
    """Of a bound of 100 ms."""
    assert nearness_there(token_ms, 100.0) == pytest.approx(counts)
    assert nearness(np.array([token_ms]), 100.0).tolist() == pytest.approx([counts])


def test_a_lost_bound_of_who_is_there_is_none() -> None:
    assert nearness_there(110.1, 100.0) == 1
    assert nearness_there(30.0, -5.0) == 1


def test_a_lost_bound_of_who_is_placed_counts_less_and_less() -> None:
    counts = nearness(np.array([110.0, 220.0, 330.0, 1e6]), 100.0)
    assert counts.tolist() == pytest.approx([2 * 10**0.5, 10**0.5, 10**0.5 * 2 / 3, 1])


def test_without_a_bound_a_millisecond_is_one() -> None:
    assert nearness(np.array([0.0, 40, 1e9]), math.inf).tolist() == [1, 1, 1]


def test_a_bound_that_has_passed_is_lost() -> None:
    assert nearness(np.array([0.0, 30.0]), -5.0).tolist() == [1, 1]


def test_what_is_taken_never_counts_less_for_taking_longer() -> None:
    token_ms = np.linspace(0, 6000, 60_001)
    counted_ms = token_ms * nearness(token_ms, 100.0)
    assert (np.diff(counted_ms) >= -1e-9).all()
    assert nearness(token_ms, 100.0).min() == 1


@pytest.mark.parametrize("bound_ms", [30.5, 33.0, 36.0, 60.0, 3000.0])
def test_the_bound_is_found_again(bound_ms: float) -> None:
    assert bound_of(nearness_there(30.0, bound_ms), 30.0) == pytest.approx(bound_ms)


def test_no_bound_counts_as_one() -> None:
    assert bound_of(1.0, 30.0) == math.inf
    assert bound_of(2.0, 0.0) == math.inf
