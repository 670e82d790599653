from __future__ import annotations

from caraserve_cli.job.input_order import MAX_OPEN_ROWS, InputOrder


def test_answers_wait_for_those_before_them() -> None:
    order: InputOrder[str] = InputOrder()
    for line in (3, 4, 7, 9):
        order.expect(line)
    assert list(order.finish(7, "c")) == []
    assert list(order.finish(4, None)) == []
    assert order.room == MAX_OPEN_ROWS - 4
    assert list(order.finish(3, "a")) == ["a", "c"]
    assert order.room == MAX_OPEN_ROWS - 1
    assert list(order.finish(9, "d")) == ["d"]
