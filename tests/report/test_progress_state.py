"""What can be told of the time left, on cases computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caraserve_cli.report.progress_state import ProgressState

START = ProgressState(
    num_answered=0,
    num_errors=0,
    num_running=0,
    num_waiting=0,
    output_tokens=0,
    slo_met=0,
    slo_carried=0,
    fraction_read=0.0,
    elapsed_s=0.0,
)


def test_nothing_can_be_told_at_the_start() -> None:
    assert START.output_tokens_per_s is None
    assert START.slo_attainment is None
    assert START.fraction_done is None
    assert START.time_left_s is None
    assert replace(START, num_waiting=10, fraction_read=1.0, elapsed_s=5.0).time_left_s is None


def test_rates() -> None:
    state = replace(START, output_tokens=500, elapsed_s=4.0, slo_met=3, slo_carried=4)
    assert state.output_tokens_per_s == 125.0
    assert state.slo_attainment == 0.75


def test_rows_in_flight_are_not_done() -> None:
    # All 100 rows are read, 20 + 5 are finished in 10 s: 75 are left at 2.5 a second.
    state = replace(
        START,
        num_answered=20,
        num_errors=5,
        num_running=15,
        num_waiting=60,
        fraction_read=1.0,
        elapsed_s=10.0,
    )
    assert state.fraction_done == 0.25
    assert state.time_left_s == pytest.approx(30.0)


def test_rows_that_have_not_arrived_are_left_too() -> None:
    # 100 rows are read, 50 of them finished in 10 s.
    state = replace(START, num_answered=50, num_waiting=10, num_to_come=40, fraction_read=1.0, elapsed_s=10.0)
    assert state.fraction_done == 0.5
    assert state.time_left_s == pytest.approx(10.0)


def test_unread_rows_are_estimated_from_the_bytes() -> None:
    # 100 rows took half of the bytes, so there are 200; 50 took 10 s, 150 are left.
    state = replace(START, num_answered=50, num_waiting=50, fraction_read=0.5, elapsed_s=10.0)
    assert state.fraction_done == 0.25
    assert state.time_left_s == pytest.approx(30.0)


def test_rows_of_earlier_sessions_took_no_time() -> None:
    # 400 rows, 300 skipped, 50 answered in 10 s, 50 left.
    state = replace(
        START, num_skipped=300, num_answered=50, num_waiting=50, fraction_read=1.0, elapsed_s=10.0
    )
    assert state.fraction_done == 0.875
    assert state.time_left_s == pytest.approx(10.0)


def test_standard_input_has_no_end_in_sight() -> None:
    state = replace(START, num_answered=50, fraction_read=None, elapsed_s=10.0)
    assert state.fraction_done is None
    assert state.time_left_s is None


def test_nothing_is_left_at_the_end() -> None:
    state = replace(START, num_answered=50, fraction_read=1.0, elapsed_s=10.0)
    assert state.time_left_s == 0.0


def test_no_more_than_the_limit_is_left() -> None:
    # 300 of 6,000 rows are taken: 100 in 10 s, 100 under way, 100 not read.
    state = replace(
        START, num_answered=100, num_running=100, fraction_read=200 / 6000, elapsed_s=10.0, most_rows=300
    )
    assert state.time_left_s == pytest.approx(20.0)
    # A limit beyond the end changes nothing.
    assert replace(state, fraction_read=1.0, most_rows=9000).time_left_s == pytest.approx(10.0)
