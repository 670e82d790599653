"""Percentiles against numpy's, and the memory they take."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest

from caraserve_cli.report.distribution import QUANTILES, RELATIVE_ACCURACY, Distribution


def filled(values: list[float]) -> Distribution:
    distribution = Distribution()
    for value in values:
        distribution.add(value)
    return distribution


def true_quantile(values: list[float], q: float) -> float:
    return float(np.quantile(values, q, method="inverted_cdf"))


def test_nothing_is_none() -> None:
    empty = Distribution()
    assert empty.count == 0
    assert [empty.mean, empty.minimum, empty.maximum, empty.quantile(0.5)] == [None] * 4


@pytest.mark.parametrize("count", [1, 2, 3, 10, 20, 99, 100, 101, 256])
def test_few_values_are_exact(count: int) -> None:
    values = list(np.random.default_rng(count).lognormal(3, 2, count))
    distribution = filled(values)
    for q in QUANTILES:
        assert distribution.quantile(q) == true_quantile(values, q)


def test_tail_of_ten_values_is_the_largest() -> None:
    assert filled([float(value) for value in range(10)]).quantile(0.99) == 9.0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sigma", [0.01, 1.0, 3.0])
def test_many_values_are_within_the_stated_accuracy(seed: int, sigma: float) -> None:
    values = list(np.random.default_rng(seed).lognormal(4, sigma, 5000))
    distribution = filled(values)
    for q in (0.01, 0.25, *QUANTILES, 0.999, 1.0):
        assert distribution.quantile(q) == pytest.approx(true_quantile(values, q), rel=RELATIVE_ACCURACY)
    assert distribution.mean == pytest.approx(np.mean(values))
    assert (distribution.minimum, distribution.maximum) == (min(values), max(values))


def test_zeros_are_values() -> None:
    distribution = filled([0.0] * 900 + [5.0] * 100)
    assert distribution.quantile(0.5) == 0.0
    assert distribution.quantile(0.9) == 0.0
    assert distribution.quantile(0.95) == pytest.approx(5.0, rel=RELATIVE_ACCURACY)


@pytest.mark.parametrize(
    "sizes", [(3, 5), (0, 4), (200, 100), (10, 1000), (1000, 10), (1000, 2000), (300, 0)]
)
def test_merged_is_as_if_added_to_one(sizes: tuple[int, int]) -> None:
    generator = np.random.default_rng(1)
    left, right = (list(generator.lognormal(2, 1, size)) for size in sizes)
    merged, one, other = filled(left), filled(left + right), filled(right)
    merged.merge(other)
    assert merged.count == one.count
    assert merged.mean == pytest.approx(one.mean)
    assert (merged.minimum, merged.maximum) == (one.minimum, one.maximum)
    assert [merged.quantile(q) for q in QUANTILES] == [one.quantile(q) for q in QUANTILES]
    assert [other.quantile(q) for q in QUANTILES] == [filled(right).quantile(q) for q in QUANTILES]


def test_memory_depends_on_the_spread_not_on_the_number() -> None:
    generator = random.Random(0)
    distribution = Distribution()

    def add(count: int) -> int:
        """Bytes held after `count` more values from 10 us to 100 s."""
        for _ in range(count):
            distribution.add(10 ** generator.uniform(-2, 5))
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        after_few, after_many = add(10_000), add(40_000)
    finally:
        tracemalloc.stop()
    assert after_few < 100_000
    assert after_many - after_few < 10_000
