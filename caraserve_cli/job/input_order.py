"""Answers that are finished out of order wait for those before them: outputs are in the input's order.

What waits is lost when a run is stopped, and answered again by the next session: what is written is always
the beginning of the whole. Knows no files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")

# Rows that may be under way or wait for an earlier one. Beyond this nothing more is read: memory stays
# bounded, and a very slow request holds the others up. Chosen, not measured.
MAX_OPEN_ROWS = 8192


class InputOrder(Generic[T]):
    """Rows by line. Every row is expected first, in the order of the input, and finished once."""

    def __init__(self) -> None:
        self._expected: deque[int] = deque()
        self._finished: dict[int, T | None] = {}

    @property
    def room(self) -> int:
        """How many more rows may be expected now."""
        return max(0, MAX_OPEN_ROWS - len(self._expected))

    def expect(self, line: int) -> None:
        self._expected.append(line)

    def finish(self, line: int, answer: T | None) -> Iterator[T]:
        """Take in a row's answer, None for a row that has none; gives what can be written now, in order."""
        self._finished[line] = answer
        while self._expected and self._expected[0] in self._finished:
            ready = self._finished.pop(self._expected.popleft())
            if ready is not None:
                yield ready
