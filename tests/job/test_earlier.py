"""Which rows a resumed run need not read again."""

from __future__ import annotations

from pathlib import Path

from caraserve_cli.core import Bounds
from caraserve_cli.job.earlier import EarlierSessions
from caraserve_cli.requests.journal import Journal


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
