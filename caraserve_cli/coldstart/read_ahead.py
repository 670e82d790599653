"""Reads what a worker multiplies next while it waits: the weights are then in its cache when the rows come.

Pages are mapped for all that is known to be needed, the cache is filled only as far as it holds. Both go by
small steps, so that who waits can look for its rows between them. Knows no tickets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from caraserve_cli.coldstart.arena_view import ArenaView

# At most so much is in the cache that was not yet multiplied: an L2 of 2 MB has room for x and the result
# beside it. Chosen, not measured.
MOST_BYTES_AHEAD = 3 << 19
# Read in one step: some microseconds from memory. Chosen, not measured.
_SLICE_BYTES = 64 << 10

# Elements of the arena, from the first to behind the last.
Extent = tuple[int, int]


class _Weights:
    """What one part of an op reads: its extents, and those of their slices that are not read yet."""

    __slots__ = ("bytes_read", "extents", "is_touched", "unread")

    def __init__(self, extents: Iterable[Extent], slice_elements: int) -> None:
        self.extents = tuple(extents)
        self.unread = deque(
            (first, min(first + slice_elements, end))
            for begin, end in self.extents
            for first in range(begin, end, slice_elements)
        )
        self.is_touched = False
        self.bytes_read = 0


class ReadAhead:
    """The weights that a worker reads next, in their order.

    Args:
        arena: in which they lie.
    """

    def __init__(self, arena: ArenaView) -> None:
        self._arena = arena
        self._itemsize = arena.elements.itemsize
        self._parts: deque[_Weights] = deque()
        self._bytes_ahead = 0

    def add(self, extents: Iterable[Extent]) -> None:
        """The part behind all those added before reads these."""
        self._parts.append(_Weights(extents, _SLICE_BYTES // self._itemsize))

    def finish(self) -> None:
        """The first part was computed: of what it reads nothing has to be kept, or read, any more."""
        self._bytes_ahead -= self._parts.popleft().bytes_read

    def step(self) -> bool:
        """Read a little ahead; False where nothing is left to read of what was added, or no room for it."""
        for part in self._parts:
            if not part.is_touched:
                self._touch(part)
                return True
            if part.unread:
                return self._read(part)
        return False

    def touch_next(self) -> bool:
        """Map the pages of the first part that has none mapped; False where all have."""
        for part in self._parts:
            if not part.is_touched:
                self._touch(part)
                return True
        return False

    def _touch(self, part: _Weights) -> None:
        part.is_touched = True
        for extent in part.extents:
            self._arena.touch(*extent)

    def _read(self, part: _Weights) -> bool:
        first, end = part.unread[0]
        num_bytes = (end - first) * self._itemsize
        if self._bytes_ahead + num_bytes > MOST_BYTES_AHEAD:
            return False
        part.unread.popleft()
        self._arena.read(first, end)
        part.bytes_read += num_bytes
        self._bytes_ahead += num_bytes
        return True
