from __future__ import annotations

import pytest

from caraserve_cli.bench.confidence import Interval, mean_interval, student_t


@pytest.mark.parametrize(("degrees", "quantile"), [(4, 2.776), (5, 2.571), (9, 2.262), (29, 2.045)])
def test_student_t_is_that_of_the_tables(degrees: int, quantile: float) -> None:
    assert student_t(degrees) == pytest.approx(quantile, abs=1e-3)


def test_an_interval_of_five_values() -> None:
    """Mean 3, standard deviation sqrt(2.5), so that half of it is 2.776 * sqrt(2.5 / 5)."""
    interval = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((3 - 1.963, 3 + 1.963), abs=1e-3)


def test_equal_values_leave_no_doubt_and_few_tell_nothing() -> None:
    assert mean_interval([2.0] * 5) == Interval(2.0, 2.0)
    assert mean_interval([2.0] * 4) is None
