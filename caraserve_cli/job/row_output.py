"""Where answers and rejected rows go: into summary and trace, and into the journal, each in the form of its
row, in the order in which they come or in that of the input.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable
from typing import NamedTuple

from caraserve_cli.core import Bounds, Completion, Request
from caraserve_cli.fleet.replica import Outcome
from caraserve_cli.job.input_order import InputOrder
from caraserve_cli.job.text_tokens import num_text_tokens
from caraserve_cli.model.tokenizer import Tokenizer
from caraserve_cli.report.metrics import measure
from caraserve_cli.report.request_line import told
from caraserve_cli.report.run_trace import RunTrace
from caraserve_cli.report.summary import RunSummary
from caraserve_cli.requests.answer import answer_row
from caraserve_cli.requests.journal import Journal
from caraserve_cli.requests.openai_output import TokenText, batch_answer_row
from caraserve_cli.requests.stream import RejectedRow

_log = logging.getLogger(__name__)


class _Answer(NamedTuple):
    """An answer in our own form, which the summary takes, and in the form in which it is written."""

    native_row: dict[str, object]
    written_row: dict[str, object]


class RowOutput:
    """The output of one session.

    Args:
        journal: takes every row once.
        summary: of the run.
        trace: of the session.
        tokenizer: of the base; None where there is none.
        place: where the line of a number stands, for people.
        token_ids: whether answers have them.
        ordered: whether answers come in the order of the input.
    """

    def __init__(
        self,
        journal: Journal,
        summary: RunSummary,
        trace: RunTrace,
        tokenizer: Tokenizer | None,
        place: Callable[[int], str],
        *,
        token_ids: bool,
        ordered: bool,
    ) -> None:
        self._journal, self._summary, self._trace, self._token_ids = journal, summary, trace, token_ids
        self._place, self._tokenizer = place, tokenizer
        self._token_text: TokenText = str if tokenizer is None else tokenizer.token_text
        self._order: InputOrder[_Answer] | None = InputOrder() if ordered else None

    @property
    def room(self) -> int:
        """How many rows more may be read, as far as those that wait for their turn have to be kept."""
        return sys.maxsize if self._order is None else self._order.room

    def expect(self, row: Request | RejectedRow) -> None:
        """A row was read; of rows that are read later, answers come later."""
        if self._order is not None:
            self._order.expect(row.line)

    def put(self, outcome: Outcome) -> None:
        """Take an outcome of a request."""
        request = outcome.request
        if isinstance(outcome, Completion):
            self._trace.on_completion(outcome)
            row = answer_row(outcome, dataclasses.asdict(measure(outcome)), self._token_ids)
            if _log.isEnabledFor(logging.INFO):
                _log.info(told(row))
            call = request.batch_call
            self._write(_Answer(row, row if call is None else self._batch_row(row, outcome)), request.line)
            return
        self._trace.on_failure()
        self.reject(
            RejectedRow(
                line=request.line,
                request_id=request.id,
                code=outcome.code,
                message=outcome.message,
                carried_bound=request.bounds != Bounds(),
                is_batch=request.batch_call is not None,
            )
        )

    def _batch_row(self, row: dict[str, object], completion: Completion) -> dict[str, object]:
        """The line in OpenAI's form, whose log-probabilities are of the text's tokens only."""
        if completion.logprobs and self._tokenizer is not None:
            own = completion.logprobs[: num_text_tokens(completion, self._tokenizer)]
            completion = dataclasses.replace(completion, logprobs=own)
        return batch_answer_row(row, completion, self._token_text)

    def reject(self, row: RejectedRow) -> None:
        """Take a row that gets no answer."""
        if _log.isEnabledFor(logging.INFO):
            which = self._place(row.line) if row.request_id is None else f"id {row.request_id}"
            _log.info("line %d, %s: %s: %s", row.line, which, row.code, row.message)
        self._summary.add_error(row.code, row.carried_bound)
        self._summary.failures.add_row(
            {"line": row.line, "id": row.request_id, "code": row.code, "message": row.message}
        )
        self._journal.write_error(row.line, row.request_id, row.code, row.message, is_batch=row.is_batch)
        self._write(None, row.line)

    def _write(self, answer: _Answer | None, line: int) -> None:
        """The answer of one row, None if it has none, and in the order of the input those that waited."""
        done = (answer,) if self._order is None else self._order.finish(line, answer)
        for one in done:
            if one is not None:
                self._summary.add_answer(one.native_row)
                self._journal.write_answer(one.written_row)
