"""What earlier sessions of a run have left in its output folder: counted again, and passed over."""

from __future__ import annotations

from caraserve_cli.core import Bounds, RequestRow
from caraserve_cli.errors import OutputError, RowErrorCode
from caraserve_cli.report.summary import RunSummary
from caraserve_cli.requests.journal import Journal
from caraserve_cli.requests.stream import RejectedRow


class EarlierSessions:
    """The rows that a journal held when it was opened.

    Attributes:
        num_answers: rows that were answered.
        num_errors: rows that were rejected.
        num_skipped: those of them that the input has shown so far.
        num_misses: those of the skipped that were rejected and carried a bound.
    """

    def __init__(self, journal: Journal, default_bounds: Bounds) -> None:
        self._journal, self._default_bounds = journal, default_bounds
        self.num_answers, self.num_errors = journal.num_answers, journal.num_errors
        self.num_skipped = 0
        self.num_misses = 0

    @property
    def num_rows(self) -> int:
        """Answered or rejected."""
        return self.num_answers + self.num_errors

    def restore(self, summary: RunSummary) -> None:
        """Fold them into a new session's summary.

        Raises:
            OutputError: a row is not one that this program wrote.
        """
        try:
            for row in self._journal.answers():
                summary.add_answer(row, restored=True)
            for row in self._journal.errors():
                summary.add_error(str(row["code"]), carried_bound=False)
                summary.failures.add_row(row)
        except (KeyError, TypeError) as error:
            raise OutputError(
                f"--resume: the output folder has a row that caraserve did not write ({error}); "
                "remove that row, or choose another --out"
            ) from error

    def is_done(self, line: int, request_id: str, may_carry_bound: bool) -> bool:
        """Whether a row needs to be read no more, by its place and its id. A rejected one that may carry a
        bound is read, to be counted if it does. Runs in the intake's thread."""
        if self._journal.is_answered(request_id):
            return True
        has_bound = may_carry_bound or self._default_bounds != Bounds()
        return not has_bound and self._journal.is_rejected(line, request_id)

    def count_done(self) -> None:
        """The input has passed over a row that is done. Runs in the intake's thread."""
        self.num_skipped += 1

    def has_dealt_with(self, row: RequestRow | RejectedRow) -> bool:
        """Whether a row of the input needs no more work. Runs in the intake's thread."""
        if isinstance(row, RequestRow) and self._journal.is_answered(row.id):
            self.num_skipped += 1
            return True
        request_id = row.id if isinstance(row, RequestRow) else row.request_id
        if self._journal.is_rejected(row.line, request_id) or self._is_rejected_elsewhere(row, request_id):
            self.num_skipped += 1
            self.num_misses += isinstance(row, RequestRow) and row.bounds != Bounds()
            return True
        return False

    def _is_rejected_elsewhere(self, row: RequestRow | RejectedRow, request_id: str | None) -> bool:
        """Whether it is the row with its id that was rejected, with other lines above it than now."""
        if request_id is None or not self._journal.is_rejected_id(request_id):
            return False
        return isinstance(row, RequestRow) or row.code is not RowErrorCode.DUPLICATE_ID
