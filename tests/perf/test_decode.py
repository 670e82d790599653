"""Decoding steps: the measured points, lines between them, and never less for more."""

from __future__ import annotations

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.decode import DecodeModel


def test_points_and_what_lies_between_and_beyond() -> None:
    model = DecodeModel.fit([8, 1, 32], [5.0, 4.0, 8.0])
    assert [model.step_ms(size) for size in (1, 8, 32)] == [4, 5, 8]
    assert model.step_ms(20) == pytest.approx(6.5)
    assert model.step_ms(40) == pytest.approx(9)
    assert model.step_ms(0) == 0


def test_below_the_smallest_batch() -> None:
    assert DecodeModel.fit([4, 8], [3.0, 5.0]).step_ms(2) == 3


def test_a_single_point() -> None:
    assert DecodeModel.fit([4], [3.0]).step_ms(9) == 3


def test_repeats_are_averaged() -> None:
    assert DecodeModel.fit([1, 1, 2], [3.0, 3.2, 5.0]).step_ms(1) == pytest.approx(3.1)


def test_larger_batches_that_were_measured_faster_are_pooled() -> None:
    """4.0 and 3.8 become their mean, the nearest that does not fall."""
    model = DecodeModel.fit([1, 2, 4, 8], [3.0, 4.0, 3.8, 4.5])
    assert model.steps_ms == pytest.approx((3.0, 3.9, 3.9, 4.5))


def test_what_falls_is_refused() -> None:
    with pytest.raises(ProfileError, match="decoding steps"):
        DecodeModel.fit([1, 2, 4, 8], [9.0, 4.0, 2.0, 1.0])


def test_a_padded_batch_takes_as_long_as_the_next_size() -> None:
    model = DecodeModel.fit([1, 8, 32], [20.0, 22.0, 34.0], is_padded=True)
    assert [model.step_ms(size) for size in (0, 1, 2, 8, 9, 32)] == [0, 20, 22, 22, 34, 34]
    assert model.step_ms(34) == pytest.approx(35)
