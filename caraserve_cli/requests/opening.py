"""Any source of requests, opened by its name: lines of JSON, mapped to requests or not, or a dataset."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self

from caraserve_cli.errors import RowError
from caraserve_cli.requests.columns import ColumnMap
from caraserve_cli.requests.dataset_path import is_dataset
from caraserve_cli.requests.dataset_source import DatasetSource, as_line
from caraserve_cli.requests.openai_batch import is_whole_batch_line
from caraserve_cli.requests.row import decode_line
from caraserve_cli.requests.source import IsDone, LineSource, RawLine


class RequestSource(Protocol):
    """Lines in order, each once. `total_bytes` is None for a pipe, whose writer may wait for answers, and 0
    where it is not known."""

    total_bytes: int | None

    @property
    def bytes_read(self) -> int: ...

    def __iter__(self) -> Iterator[RawLine]: ...

    def pass_over(self, is_done: IsDone) -> None:
        """Before iterating: of rows that are done no more is wanted than `RawLine.done_id`, if a source
        knows ids without reading all of a row."""

    def place(self, number: int) -> str:
        """Where the line of a `RawLine.number` stands, for people: `FILE:LINE`."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_requests(source: str, columns: ColumnMap | None = None) -> RequestSource:
    """Open a source.

    Args:
        source: a file of lines, `-`, or a dataset.
        columns: which columns are which keys; None takes lines of JSON for requests as they are.

    Raises:
        InputError: it cannot be used.
    """
    if is_dataset(source):
        return DatasetSource(source, columns or ColumnMap())
    return LineSource(source) if columns is None else MappedLines(source, columns)


class MappedLines(LineSource):
    """A file of JSON lines whose keys are columns; lines of OpenAI's Batch stay as they are."""

    def __init__(self, source: str, columns: ColumnMap) -> None:
        super().__init__(source)
        self._columns = columns

    def __iter__(self) -> Iterator[RawLine]:
        return map(self._mapped, super().__iter__())

    def _mapped(self, line: RawLine) -> RawLine:
        if line.data is None:
            return line
        try:
            values = decode_line(line.data)
        except RowError:  # found again, and told, where lines become rows
            return line
        return line if is_whole_batch_line(values) else as_line(line.number, values, self._columns)
