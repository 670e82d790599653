"""Reads what a worker multiplies next while it waits: the weights are then in its cache when the rows come.

Pages are mapped for all that is known to be needed, the cache is filled only as far as it holds. Both go by
small steps, so that who waits can look for its rows between them. Knows no tickets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from caraserve_cli.coldstart.arena_view import ArenaView, Extent

# At most so much is in the cache that was not yet multiplied: an L2 of 2 MB has room for x and the result
# beside it. Chosen, not measured.
MOST_BYTES_AHEAD = 3 << 19
# Read in one step: some microseconds from memory. Chosen, not measured.
_STEP_BYTES = 64 << 10


class _Weights:
    """What one part of an op reads: its extents, and those of the steps that are not read yet."""

    __slots__ = ("bytes_read", "extents", "is_touched", "unread")

    def __init__(self, extents: Iterable[Extent], step_elements: int) -> None:
        self.extents = tuple(extents)
        self.unread = deque(step for extent in self.extents for step in _steps_of(extent, step_elements))
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
        self._parts.append(_Weights(extents, _STEP_BYTES // self._itemsize))

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
            # With what lies between the pieces: a page often holds several.
            self._arena.touch(extent.first, extent.last_end)

    def _read(self, part: _Weights) -> bool:
        step = part.unread[0]
        num_bytes = step.num_elements * self._itemsize
        if self._bytes_ahead + num_bytes > MOST_BYTES_AHEAD:
            return False
        part.unread.popleft()
        self._arena.read(step)
        part.bytes_read += num_bytes
        self._bytes_ahead += num_bytes
        return True


def _steps_of(extent: Extent, step_elements: int) -> Iterator[Extent]:
    """The extent in order, by whole pieces where one is no more than a step."""
    first, end, num_pieces, stride = extent
    num_together = max(1, step_elements // max(1, end - first))
    if num_pieces > 1 and num_together > 1:
        for piece in range(0, num_pieces, num_together):
            offset = piece * stride
            yield Extent(first + offset, end + offset, min(num_together, num_pieces - piece), stride)
        return
    for offset in (piece * stride for piece in range(num_pieces)):
        for begin in range(first + offset, end + offset, step_elements):
            yield Extent(begin, min(begin + step_elements, end + offset))
