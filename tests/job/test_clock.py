from __future__ import annotations

from caraserve_cli.job.clock import RunClock


def test_a_clock_stands_at_0_until_it_is_started() -> None:
    clock = RunClock()
    assert clock() == clock.running_ms == 0.0


def test_it_may_start_later_than_at_0_and_tells_how_long_it_runs() -> None:
    clock = RunClock()
    clock.start(5_000_000.0)
    clock.start()
    before_ms, running_ms, after_ms = clock(), clock.running_ms, clock()
    assert 5_000_000.0 <= before_ms <= 5_000_000.0 + running_ms <= after_ms
