from __future__ import annotations

import os

import pytest
import torch

from caraserve_cli.coldstart.arena_view import ArenaView
from caraserve_cli.coldstart.read_ahead import MOST_BYTES_AHEAD, ReadAhead

_NUM_BYTES = 8 << 20


class CountingView(ArenaView):
    """Notes what is asked for, in elements."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, _NUM_BYTES, torch.bfloat16)
        self.touched: list[tuple[int, int]] = []
        self.was_read: list[tuple[int, int]] = []

    def touch(self, first_element, end_element):
        self.touched.append((first_element, end_element))
        super().touch(first_element, end_element)

    def read(self, first_element, end_element):
        self.was_read.append((first_element, end_element))
        super().read(first_element, end_element)

    @property
    def bytes_read(self) -> int:
        return sum(2 * (end - first) for first, end in self.was_read)


@pytest.fixture
def view():
    fd = os.memfd_create("read-ahead")
    os.ftruncate(fd, _NUM_BYTES)
    made = CountingView(fd)
    os.close(fd)
    return made


def _all_steps(ahead: ReadAhead) -> int:
    num_steps = 0
    while ahead.step():
        num_steps += 1
    return num_steps


def test_everything_is_mapped_and_read_once_in_order_and_by_small_steps(view):
    ahead = ReadAhead(view)
    parts = [[(64, 100_064), (200_000, 200_010)], [(300_000, 350_000)]]
    for part in parts:
        ahead.add(part)
    assert _all_steps(ahead) >= 4
    assert view.touched == [*parts[0], *parts[1]]
    elements = [element for first, end in view.was_read for element in range(first, end)]
    assert elements == [element for part in parts for first, end in part for element in range(first, end)]
    assert max(end - first for first, end in view.was_read) * 2 <= 128 << 10
    assert not ahead.step()


def test_no_more_is_read_ahead_than_a_cache_holds(view):
    ahead = ReadAhead(view)
    num_elements = 1 << 20 >> 1
    for part in range(4):
        ahead.add([(part * num_elements, (part + 1) * num_elements)])
    _all_steps(ahead)
    assert view.bytes_read == MOST_BYTES_AHEAD
    # What was computed makes room; what was not read before its turn is not read after it.
    ahead.finish()
    _all_steps(ahead)
    assert view.bytes_read == MOST_BYTES_AHEAD + (1 << 20)
    ahead.finish()
    ahead.finish()
    ahead.finish()
    ahead.add([(0, num_elements)])
    assert _all_steps(ahead) > 1
    assert view.bytes_read == MOST_BYTES_AHEAD + (2 << 20)


def test_pages_are_mapped_however_far_ahead(view):
    ahead = ReadAhead(view)
    parts = [(part << 19, (part + 1) << 19) for part in range(8)]
    for part in parts:
        ahead.add([part])
    _all_steps(ahead)
    while ahead.touch_next():
        pass
    assert view.touched == parts
    assert view.bytes_read == MOST_BYTES_AHEAD


def test_a_part_that_reads_nothing_is_no_obstacle(view):
    ahead = ReadAhead(view)
    ahead.add([])
    ahead.add([(0, 64)])
    _all_steps(ahead)
    assert view.was_read == [(0, 64)]
    ahead.finish()
    ahead.finish()
    assert not ahead.step()
