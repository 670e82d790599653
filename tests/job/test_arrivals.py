from __future__ import annotations

from caraserve_cli.core import Request
from caraserve_cli.job.arrivals import Arrivals


def make_request(line: int, arrival_ms: float) -> Request:
    return Request(id=str(line), line=line, prompt_token_ids=(1,), arrival_ms=arrival_ms)


def make_arrivals(*arrival_ms: float) -> Arrivals:
    arrivals = Arrivals()
    for line, each in enumerate(arrival_ms, start=1):
        arrivals.add(make_request(line, each))
    return arrivals


def test_they_come_when_they_arrive_and_equal_ones_in_the_order_of_the_file() -> None:
    arrivals = make_arrivals(30.0, 10.0, 20.0, 10.0)
    assert arrivals.next_ms == 10.0
    assert arrivals.take_due(9.9) == []
    assert [request.line for request in arrivals.take_due(20.0)] == [2, 4, 3]
    assert len(arrivals) == 1
    assert [request.line for request in arrivals.take_due(30.0)] == [1]


def test_late_is_what_arrived_before_a_moment_when_nothing_was_read() -> None:
    arrivals = make_arrivals(500.0, 500.0)
    arrivals.shut(100.0)
    for line, arrival_ms in enumerate((99.0, 100.0, 600.0), start=3):
        arrivals.add(make_request(line, arrival_ms))
    assert arrivals.num_late == 1


def test_a_file_in_order_is_never_late_however_slow_the_steps() -> None:
    arrivals = Arrivals()
    lines = iter(range(10_000))
    for now_ms in range(0, 2000, 300):  # many arrive while one step is computed
        while len(arrivals) < 500:
            line = next(lines)
            arrivals.add(make_request(line, float(line)))
        arrivals.take_due(now_ms)
        assert arrivals, "the window is full of requests yet to arrive"
        arrivals.shut(now_ms)
    assert arrivals.num_late == 0
