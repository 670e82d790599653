"""Several sources of requests, one after the other, as one. Only one is open at a time."""

from __future__ import annotations

import glob
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.requests.columns import ColumnMap
from caraserve_cli.requests.hub import HUB_PREFIX
from caraserve_cli.requests.opening import RequestSource, open_requests
from caraserve_cli.requests.source import IsDone, RawLine

_PATTERN_MARKS = "*?["


def expand(patterns: Sequence[str]) -> list[str]:
    """The sources that were named, in order; those of a pattern such as `day-*.jsonl` sorted by name. What
    exists under the very name, and what is no path of a file, is no pattern.

    Raises:
        InputError: nothing matches a pattern.
        OptionError: standard input stands beside other sources.
    """
    sources: list[str] = []
    for pattern in patterns:
        # `?` also begins the query of a dataset.
        path = pattern.partition("?split=")[0]
        is_pattern = any(mark in path for mark in _PATTERN_MARKS) and not Path(pattern).exists()
        if pattern.startswith(HUB_PREFIX) or not is_pattern or Path(pattern.partition("?")[0]).exists():
            sources.append(pattern)
            continue
        found = sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise InputError(f"requests file '{pattern}' does not exist, and as a pattern it matches no file")
        sources += found
    if len(sources) > 1 and "-" in sources:
        raise OptionError("REQUESTS: standard input (-) cannot stand beside files; give one of them")
    return sources


class ManySources:
    """The lines of several sources; `RawLine.number` counts through all. Iterate once; close when done.

    Args:
        sources: as `open_requests` takes them; files that exist.
        columns: which columns are which keys; None takes lines of JSON for requests as they are.

    Raises:
        InputError: the first one cannot be used; while iterating: another one.
    """

    def __init__(self, sources: Sequence[str], columns: ColumnMap | None) -> None:
        self._sources, self._columns = sources, columns
        self._current = open_requests(sources[0], columns)
        self._sizes = [Path(source).stat().st_size if Path(source).is_file() else 0 for source in sources]
        self._num_done = 0
        self._befores: list[int] = []  # of each source begun so far: lines of those before it
        self._is_done: IsDone | None = None
        # Whose size is not known leaves that of all unknown.
        self.total_bytes: int | None = sum(self._sizes) if all(self._sizes) else 0
        if any(Path(source).is_fifo() for source in sources):
            self.total_bytes = None  # a pipe, whose writer may wait for answers

    @property
    def bytes_read(self) -> int:
        done = sum(self._sizes[: self._num_done])
        if self._num_done == len(self._sources):
            return done
        total = self._current.total_bytes
        return done + (round(self._sizes[self._num_done] * self._current.bytes_read / total) if total else 0)

    def __iter__(self) -> Iterator[RawLine]:
        number = 0
        for source in self._sources:
            if self._num_done:
                self._current = open_requests(source, self._columns)
            before = number
            self._befores.append(before)
            if self._is_done is not None:
                self._current.pass_over(_counted_from(before, self._is_done))
            for line in self._current:
                number = before + line.number
                yield line._replace(number=number)
            self._current.close()
            self._num_done += 1

    def pass_over(self, is_done: IsDone) -> None:
        """See `RequestSource`."""
        self._is_done = is_done

    def place(self, number: int) -> str:
        """See `RequestSource`."""
        # A source without lines begins where the next one does.
        index = bisect_left(self._befores, number) - 1
        return f"{self._sources[index]}:{number - self._befores[index]}"

    def close(self) -> None:
        """Close the one that is open."""
        self._current.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _counted_from(before: int, is_done: IsDone) -> IsDone:
    """For a source whose numbers begin at 1 after so many lines of others."""
    return lambda number, request_id, may_carry_bound: is_done(before + number, request_id, may_carry_bound)


def open_all(sources: Sequence[str], columns: ColumnMap | None) -> RequestSource:
    """Open one source or several.

    Raises:
        InputError: it cannot be used.
    """
    return open_requests(sources[0], columns) if len(sources) == 1 else ManySources(sources, columns)
