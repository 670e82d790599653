"""The lines of a requests file -> its rows, in file order: valid requests and rejected ones.

Gives rows without an id one of their own, and rejects a second row with the same id. Knows no tokenizer,
no adapters and no output folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import NamedTuple

from caraserve_cli.core import RequestRow
from caraserve_cli.errors import RowError, RowErrorCode
from caraserve_cli.requests.fields import excerpt
from caraserve_cli.requests.id_table import IdTable
from caraserve_cli.requests.openai_batch import is_batch_line, parse_batch_line
from caraserve_cli.requests.openai_output import error_row
from caraserve_cli.requests.row import RowDefaults, decode_line, parse_row
from caraserve_cli.requests.source import MAX_LINE_BYTES, RawLine


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """One row that cannot be answered; becomes a line in errors.jsonl.

    `carried_bound` says whether it is known to have carried a bound, which it then missed; `is_batch` whether
    it is an OpenAI Batch line, whose error has that form.
    """

    line: int
    request_id: str | None
    code: str
    message: str
    carried_bound: bool = False
    is_batch: bool = False

    def as_row(self) -> dict[str, object]:
        """Its line in errors.jsonl."""
        return error_row(self.line, self.request_id, self.code, self.message, is_batch=self.is_batch)


class RowArrival(NamedTuple):
    """What an arrival process gives a row: `ms` from the start of the run, and the adapter that it has if it
    leaves the key out; None leaves that to the run."""

    ms: float
    adapter: str | None


class RowStream:
    """The rows of a requests file. Iterate once.

    A row without an id gets the hash of its line and the line's occurrence number among equal lines, so that
    neither inserting nor moving *other* lines changes it.

    Of rows with the same id the first one has it, **even if that row was rejected**: which row an id stands
    for must not change when another row is mended. A row whose id could not be read claims none.

    Args:
        lines: the lines that are not blank.
        defaults: what a row gets for a key that it leaves out.
        limit: take this many rows from the start, rejected ones included; None takes all.
        arrivals: one for each row, rejected ones included, so that mending a row moves no other; None where
            rows say when they arrive.
        on_done: told of each row that the source has passed over, which is not among the rows here. It
            has claimed its id and its arrival nevertheless.
    """

    def __init__(
        self,
        lines: Iterable[RawLine],
        defaults: RowDefaults,
        limit: int | None = None,
        arrivals: Iterator[RowArrival] | None = None,
        on_done: Callable[[], None] = lambda: None,
    ) -> None:
        self._lines = islice(lines, limit)
        self._defaults = defaults
        self._arrivals = arrivals
        self._on_done = on_done
        self._claimed_ids = IdTable()
        self._unnamed_lines = IdTable()

    def __iter__(self) -> Iterator[RequestRow | RejectedRow]:
        for line in self._lines:
            row = self._row(line)
            if row is None:
                self._on_done()
            else:
                yield row

    def _row(self, line: RawLine) -> RequestRow | RejectedRow | None:
        """None for a row that is done, and was not read."""
        defaults = self._next_defaults()
        if line.done_id is not None:
            is_first = not self._claimed_ids.add(line.done_id.encode())
            return None if is_first else _duplicate(line, line.done_id, is_batch=False)
        try:
            row = self._parse(line, defaults)
        except RowError as error:
            if error.request_id is not None:
                self._claimed_ids.add(error.request_id.encode())
            return _rejected(line, error)
        if self._claimed_ids.add(row.id.encode()):
            return _duplicate(line, row.id, is_batch=row.batch_call is not None)
        return row

    def _next_defaults(self) -> RowDefaults:
        if self._arrivals is None:
            return self._defaults
        arrival_ms, adapter = next(self._arrivals)
        return replace(
            self._defaults,
            arrival_ms=arrival_ms,
            adapter=self._defaults.adapter if adapter is None else adapter,
        )

    def _parse(self, line: RawLine, defaults: RowDefaults) -> RequestRow:
        data = line.data
        if data is None:
            message = f"line is longer than {MAX_LINE_BYTES // 2**20} MiB"
            raise RowError(RowErrorCode.LINE_TOO_LONG, message)
        if line.problem is not None:
            raise RowError(RowErrorCode.INVALID_REQUEST, line.problem)
        values = decode_line(data)
        if is_batch_line(values):
            return parse_batch_line(values, line.number, defaults)
        return parse_row(values, line.number, defaults, lambda: self._make_id(data))

    def _make_id(self, data: bytes) -> str:
        digest = blake2b(data, digest_size=16)
        return f"{digest.hexdigest()}-{self._unnamed_lines.add(digest.digest()) + 1}"


def _duplicate(line: RawLine, request_id: str, *, is_batch: bool) -> RejectedRow:
    message = f"id {excerpt(request_id)} is that of an earlier row; only the first one with an id is answered"
    return _rejected(line, RowError(RowErrorCode.DUPLICATE_ID, message, request_id, is_batch))


def _rejected(line: RawLine, error: RowError) -> RejectedRow:
    return RejectedRow(
        line=line.number,
        request_id=error.request_id,
        code=error.code,
        message=error.message,
        is_batch=error.is_batch,
    )
