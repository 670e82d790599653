from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.core import RequestRow
from caraserve_cli.errors import InputError
from caraserve_cli.job.intake import Intake
from caraserve_cli.job.prepare import Preparer
from caraserve_cli.requests.stream import RejectedRow

PREPARER = Preparer(None, AdapterLibrary.scan([]), vocab_size=10_000, run_seed=0)


def make_row(number: int) -> RequestRow:
    return RequestRow(id=str(number), line=number, prompt_token_ids=(number + 1,))


def make_intake(rows: Iterator[RequestRow | RejectedRow], window: int = 8, batch_rows: int = 4) -> Intake:
    return Intake(rows, PREPARER, lambda row: row.line % 10 == 9, window, batch_rows)


def take_all(intake: Intake) -> list[int]:
    lines = []
    while not intake.exhausted:
        lines += [item.line for item in intake.take(3, wait_s=5.0)]
    return lines


def test_order_is_kept_and_what_is_done_is_passed_over() -> None:
    def rows() -> Iterator[RequestRow | RejectedRow]:
        for number in range(50):
            if number % 7 == 3:
                yield RejectedRow(line=number, request_id=None, code="invalid_json", message="no")
            else:
                yield make_row(number)

    assert take_all(make_intake(rows())) == [number for number in range(50) if number % 10 != 9]


def test_the_reader_waits_for_whoever_takes() -> None:
    """The window bounds what is held, however long the input."""
    num_read = 0

    def rows() -> Iterator[RequestRow]:
        nonlocal num_read
        for number in range(1000):
            num_read += 1
            yield make_row(number)

    intake = make_intake(rows(), window=8, batch_rows=4)
    assert len(intake.take(1, wait_s=5.0)) == 1
    assert num_read <= 8 + 2 * 4 + 4
    intake.close()


def test_an_error_comes_after_the_rows_before_it() -> None:
    def rows() -> Iterator[RequestRow]:
        yield from map(make_row, range(6))
        raise InputError("the file is damaged beyond line 6")

    intake = make_intake(rows(), batch_rows=1)
    lines: list[int] = []
    while len(lines) < 6:
        lines += [item.line for item in intake.take(4, wait_s=5.0)]
    assert lines == list(range(6))
    assert not intake.exhausted, "a run that ends here would not tell of the error"
    with pytest.raises(InputError, match="beyond line 6"):
        intake.take(4, wait_s=5.0)
    assert intake.exhausted
    assert intake.take(4, wait_s=None) == []


def test_slow_input_does_not_hold_up_the_loop() -> None:
    may_go_on = threading.Event()

    def rows() -> Iterator[RequestRow]:
        yield make_row(0)
        may_go_on.wait(timeout=30)
        yield make_row(1)

    intake = make_intake(rows(), batch_rows=1)
    assert [item.line for item in intake.take(4, wait_s=5.0)] == [0]
    assert intake.take(4, wait_s=None) == [], "nothing is there, and nobody waits"
    may_go_on.set()
    assert take_all(intake) == [1]
