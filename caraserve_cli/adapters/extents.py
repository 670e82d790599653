"""Who has which bytes of one buffer: contiguous extents, and how to slide them together.

Knows numbers, not memory: whoever owns the buffer carries out the moves.

Every extent starts at a multiple of `ALIGNMENT_BYTES` and takes a multiple of it, and so does the whole
buffer: as all sizes are rounded the same way, extents that fit by their sum fit after a compaction.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

# What CUDA's own allocations are aligned to: enough for the widest loads and for the copy engines.
ALIGNMENT_BYTES = 256


def aligned_bytes(num_bytes: int) -> int:
    """`num_bytes`, rounded up to what it takes in an `ExtentMap`."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class ExtentMove(NamedTuple):
    """Slide one extent to a lower offset. The two ranges may overlap."""

    from_offset_bytes: int
    to_offset_bytes: int
    num_bytes: int


class Hole(NamedTuple):
    """Free bytes between two extents, or at the end."""

    offset_bytes: int
    num_bytes: int

    @property
    def end_bytes(self) -> int:
        return self.offset_bytes + self.num_bytes


class ExtentMap:
    """Extents of a buffer of `aligned_bytes(capacity_bytes)` bytes, which the buffer must really have.

    Adjacent holes are always one. Allocating costs time in the number of holes, freeing its logarithm.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = aligned_bytes(capacity_bytes)
        self._size_at: dict[int, int] = {}  # offset of each extent → its bytes
        self._holes: list[Hole] = [Hole(0, self.capacity_bytes)] if self.capacity_bytes else []  # by offset
        self._free_bytes = self.capacity_bytes

    @property
    def free_bytes(self) -> int:
        return self._free_bytes

    @property
    def used_bytes(self) -> int:
        return self.capacity_bytes - self._free_bytes

    @property
    def largest_hole_bytes(self) -> int:
        return max((hole.num_bytes for hole in self._holes), default=0)

    def allocate(self, num_bytes: int) -> int | None:
        """Offset of a new extent, in the smallest hole that holds it; None if there is none.

        Raises:
            ValueError: `num_bytes` is not above zero.
        """
        if num_bytes <= 0:
            raise ValueError(f"an extent of {num_bytes} bytes")
        size = aligned_bytes(num_bytes)
        fitting = (index for index, hole in enumerate(self._holes) if hole.num_bytes >= size)
        index = min(fitting, key=lambda index: self._holes[index].num_bytes, default=None)
        if index is None:
            return None
        hole = self._holes[index]
        left = Hole(hole.offset_bytes + size, hole.num_bytes - size)
        self._holes[index : index + 1] = [left] if left.num_bytes else []
        self._size_at[hole.offset_bytes] = size
        self._free_bytes -= size
        return hole.offset_bytes

    def free(self, offset_bytes: int) -> None:
        """Give back the extent at `offset_bytes`.

        Raises:
            KeyError: there is none.
        """
        hole = Hole(offset_bytes, self._size_at.pop(offset_bytes))
        self._free_bytes += hole.num_bytes
        first = last = bisect_left(self._holes, hole)
        if first and self._holes[first - 1].end_bytes == hole.offset_bytes:
            first -= 1
            hole = Hole(self._holes[first].offset_bytes, self._holes[first].num_bytes + hole.num_bytes)
        if last < len(self._holes) and self._holes[last].offset_bytes == hole.end_bytes:
            hole = Hole(hole.offset_bytes, hole.num_bytes + self._holes[last].num_bytes)
            last += 1
        self._holes[first:last] = [hole]

    def compact(self, num_bytes: int) -> tuple[ExtentMove, ...]:
        """Make one hole of at least `num_bytes`, and move as few bytes as that takes.

        Of all runs of neighbouring holes that are enough together, the one with the fewest bytes between its
        holes is closed: each extent in it slides down, and its holes become one at its upper end.

        The moves are safe one after the other, in this order: the lowest extent goes first, into bytes that
        are free or its own. An extent that is longer than its way down overlaps itself: copy it as memmove
        does, from the lowest address up.

        Raises:
            ValueError: less is free in total (callers ask `free_bytes` first).
        """
        size = aligned_bytes(num_bytes)
        if size > self._free_bytes:
            raise ValueError(f"{size} bytes wanted, {self._free_bytes} free")
        first, last = self._cheapest_run(size)
        to_offset, end = self._holes[first].offset_bytes, self._holes[last].end_bytes
        moves: list[ExtentMove] = []
        for offset in sorted(offset for offset in self._size_at if to_offset <= offset < end):
            moves.append(ExtentMove(offset, to_offset, self._size_at.pop(offset)))
            self._size_at[to_offset] = moves[-1].num_bytes
            to_offset += moves[-1].num_bytes
        self._holes[first : last + 1] = [Hole(to_offset, end - to_offset)]
        return tuple(moves)

    def _cheapest_run(self, size: int) -> tuple[int, int]:
        """First and last index of the run of holes of `size` bytes with the fewest used bytes inside."""
        runs: list[tuple[int, int, int]] = []  # (bytes to move, first, last)
        first = run_bytes = 0
        for last, hole in enumerate(self._holes):
            run_bytes += hole.num_bytes
            while run_bytes - self._holes[first].num_bytes >= size:
                run_bytes -= self._holes[first].num_bytes
                first += 1
            if run_bytes >= size:
                span_bytes = hole.end_bytes - self._holes[first].offset_bytes
                runs.append((span_bytes - run_bytes, first, last))
        _, first, last = min(runs)
        return first, last

    def check_integrity(self) -> None:
        """For tests, after every change.

        Raises:
            AssertionError: extents and holes do not tile the buffer, or adjacent holes are two.
        """
        assert self._holes == sorted(self._holes)
        pieces = sorted([*self._size_at.items(), *self._holes])
        end = 0
        for offset, size in pieces:
            assert offset == end, "extents and holes overlap, or bytes are lost"
            assert size > 0
            assert offset % ALIGNMENT_BYTES == size % ALIGNMENT_BYTES == 0
            end = offset + size
        assert end == self.capacity_bytes
        pairs = zip(self._holes, self._holes[1:], strict=False)
        assert all(low.end_bytes < high.offset_bytes for low, high in pairs), "adjacent holes are not one"
        assert self._free_bytes == sum(hole.num_bytes for hole in self._holes)
