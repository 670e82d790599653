"""Where steps end, by arithmetic and one by one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caraserve_cli.simulation.decode_run import DecodeRun


def test_ends_by_hand() -> None:
    run = DecodeRun(100, 20, 1, 4)
    assert [run.end_ms(number) for number in range(1, 5)] == [120, 141, 163, 186]
    assert [run.steps_until(at) for at in (100, 120, 120.5, 141, 162, 186, 999)] == [1, 1, 2, 2, 3, 4, 4]


@given(
    st.floats(0, 1e6),
    st.floats(0.1, 100),
    st.floats(0, 1),
    st.integers(1, 500),
    st.floats(0, 2),
)
def test_the_fewest_steps_that_end_then_or_later(
    begin_ms: float, first_ms: float, growth_ms: float, num_steps: int, share: float
) -> None:
    run = DecodeRun(begin_ms, first_ms, growth_ms, num_steps)
    at_ms = begin_ms + share * (run.end_ms(num_steps) - begin_ms)
    ends = [begin_ms]
    for step in range(num_steps):
        ends.append(ends[-1] + first_ms + step * growth_ms)
    assert run.end_ms(num_steps) == pytest.approx(ends[-1])
    found = run.steps_until(at_ms)
    assert found == num_steps or ends[found] >= at_ms - 1e-6
    assert found == 1 or ends[found - 1] < at_ms + 1e-6
