"""Which rows a resumed run need not read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from caraserve_cli.core import Bounds, RequestRow
from caraserve_cli.errors import RowErrorCode
from caraserve_cli.job.earlier import EarlierSessions
from caraserve_cli.requests.journal import Journal
from caraserve_cli.requests.stream import RejectedRow


def test_rejected_rows_that_may_carry_a_bound_are_read_again(tmp_path: Path) -> None:
    with Journal.open(tmp_path, {}) as journal:
        journal.write_answer({"id": "a"})
        journal.write_error(2, "b", "unknown_adapter", "no")
    with Journal.open(tmp_path, {}, resume=True) as journal:
        earlier = EarlierSessions(journal, Bounds())
        assert earlier.is_done(1, "a", True)
        assert earlier.is_done(2, "b", False)
        assert not earlier.is_done(2, "b", True)
        assert not earlier.is_done(3, "b", False)  # a row with the same id further down
        assert not earlier.is_done(3, "c", False)
        assert not EarlierSessions(journal, Bounds(deadline_ms=1)).is_done(2, "b", False)


def row(line: int) -> RequestRow:
    return RequestRow(id="b", line=line, prompt="x", bounds=Bounds(deadline_ms=1))


def test_a_rejected_row_is_known_by_its_id_where_other_lines_are_above_it(tmp_path: Path) -> None:
    with Journal.open(tmp_path, {}) as journal:
        journal.write_error(1, None, "invalid_json", "bad")
        journal.write_error(5, "b", "unknown_adapter", "no")
    with Journal.open(tmp_path, {}, resume=True) as journal:
        earlier = EarlierSessions(journal, Bounds())
        assert earlier.has_dealt_with(row(4))
        assert (earlier.num_skipped, earlier.num_misses) == (1, 1)
        invalid = RejectedRow(line=4, request_id="b", code=RowErrorCode.INVALID_REQUEST, message="")
        assert earlier.has_dealt_with(invalid)
        assert not earlier.has_dealt_with(replace(invalid, code=RowErrorCode.DUPLICATE_ID))
        assert not earlier.has_dealt_with(replace(invalid, request_id=None))
