from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
import torch

from caraserve_cli.coldstart.arena_view import ArenaView, Extent
from caraserve_cli.coldstart.read_ahead import MOST_BYTES_AHEAD, ReadAhead

_NUM_BYTES = 8 << 20


class CountingView(ArenaView):
    """Notes what is asked for, in elements."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, _NUM_BYTES, torch.bfloat16)
        self.touched: list[tuple[int, int]] = []
        self.was_read: list[Extent] = []

    def touch(self, first_element, end_element):
        self.touched.append((first_element, end_element))
        super().touch(first_element, end_element)

    def read(self, extent):
        self.was_read.append(extent)
        super().read(extent)

    @property
    def bytes_read(self) -> int:
        return sum(2 * extent.num_elements for extent in self.was_read)


@pytest.fixture
def view():
    fd = os.memfd_create("read-ahead")
    os.ftruncate(fd, _NUM_BYTES)
    made = CountingView(fd)
    os.close(fd)
    return made


def _elements(extents: Iterable[Extent]) -> list[int]:
    return [
        element + piece * stride
        for first, end, num_pieces, stride in extents
        for piece in range(num_pieces)
        for element in range(first, end)
    ]


def _all_steps(ahead: ReadAhead) -> int:
    num_steps = 0
    while ahead.step():
        num_steps += 1
    return num_steps


def test_everything_is_mapped_and_read_once_in_order_and_by_small_steps(view):
    ahead = ReadAhead(view)
    parts = [
        [Extent(64, 100_064), Extent(200_000, 200_010), Extent(210_000, 211_000, 70, 3000)],
        [Extent(500_000, 550_000), Extent(600_000, 640_000, 3, 50_000)],
    ]
    for part in parts:
        ahead.add(part)
    assert _all_steps(ahead) >= 4
    extents = [extent for part in parts for extent in part]
    assert view.touched == [(extent.first, extent.last_end) for extent in extents]
    assert _elements(view.was_read) == _elements(extents)
    assert max(extent.num_elements for extent in view.was_read) * 2 <= 128 << 10
    # Short pieces are read several at a time.
    assert len(view.was_read) < 20
    assert not ahead.step()


def test_no_more_is_read_ahead_than_a_cache_holds(view):
    ahead = ReadAhead(view)
    num_elements = 1 << 20 >> 1
    for part in range(4):
        ahead.add([Extent(part * num_elements, (part + 1) * num_elements)])
    _all_steps(ahead)
    assert view.bytes_read == MOST_BYTES_AHEAD
    # What was computed makes room; what was not read before its turn is not read after it.
    ahead.finish()
    _all_steps(ahead)
    assert view.bytes_read == MOST_BYTES_AHEAD + (1 << 20)
    ahead.finish()
    ahead.finish()
    ahead.finish()
    ahead.add([Extent(0, num_elements)])
    assert _all_steps(ahead) > 1
    assert view.bytes_read == MOST_BYTES_AHEAD + (2 << 20)


def test_pages_are_mapped_however_far_ahead(view):
    ahead = ReadAhead(view)
    parts = [(part << 19, (part + 1) << 19) for part in range(8)]
    for part in parts:
        ahead.add([Extent(*part)])
    _all_steps(ahead)
    while ahead.touch_next():
        pass
    assert view.touched == parts
    assert view.bytes_read == MOST_BYTES_AHEAD


def test_a_part_that_reads_nothing_is_no_obstacle(view):
    ahead = ReadAhead(view)
    ahead.add([])
    ahead.add([Extent(0, 64)])
    _all_steps(ahead)
    assert view.was_read == [Extent(0, 64)]
    ahead.finish()
    ahead.finish()
    assert not ahead.step()
