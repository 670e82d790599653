from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest
import torch

from caraserve_cli.coldstart.arena_view import ArenaView, Extent

# Behind whole pieces a part of one page, of two cache lines and two bytes. The last elements that a test
# reads are all in it: for two pages the kernel may map two windows, by where the mapping lies.
_NUM_BYTES = (1 << 20) + 2 * 64 + 2


def _mapped_bytes(name: str) -> int:
    """What of a memfd's read-only mapping this process has in its page table."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if f"memfd:{name} " in line and " r--s " in line:
            return next(int(field.split()[1]) * 1024 for field in lines if field.startswith("Rss:"))
    raise AssertionError("not mapped")


@pytest.fixture
def view():
    fd = os.memfd_create("arena-view")
    os.ftruncate(fd, _NUM_BYTES)
    with mmap.mmap(fd, _NUM_BYTES) as memory:
        memory[:] = bytes(range(256)) * (_NUM_BYTES // 256) + bytes(_NUM_BYTES % 256)
    made = ArenaView(fd, _NUM_BYTES, torch.bfloat16)
    os.close(fd)
    return made


def test_the_elements_are_those_of_the_memory(view):
    assert view.elements.shape == (_NUM_BYTES // 2,)
    assert view.elements[:2].view(torch.uint8).tolist() == [0, 1, 2, 3]


def test_what_was_touched_is_mapped_and_little_else(view):
    assert _mapped_bytes("arena-view") == 0
    view.touch(200_000, 300_000)
    mapped = _mapped_bytes("arena-view")
    assert 200_000 <= mapped <= 200_000 + 2 * (64 << 10)
    view.touch(210_000, 290_000)
    assert _mapped_bytes("arena-view") == mapped
    view.touch(250_000, 400_000)
    assert _mapped_bytes("arena-view") >= 400_000


def test_what_is_read_is_mapped_and_little_else(view):
    view.read(Extent(200_000, 300_000))
    assert 200_000 <= _mapped_bytes("arena-view") <= 200_000 + 2 * (64 << 10)


def test_of_pieces_what_lies_between_them_need_not_be_read(view):
    view.read(Extent(1000, 1100, 2, 400_000))
    assert 0 < _mapped_bytes("arena-view") <= 4 * (64 << 10)
    # Up to the last element of the memory.
    view.read(Extent(_NUM_BYTES // 2 - 3200, _NUM_BYTES // 2 - 3100, 32, 100))


def test_the_last_elements_and_none_at_all_can_be_read(view):
    view.read(Extent(0, 0))
    assert _mapped_bytes("arena-view") == 0
    # Two bytes behind the last whole cache line.
    view.read(Extent(_NUM_BYTES // 2 - 1, _NUM_BYTES // 2))
    view.read(Extent(_NUM_BYTES // 2 - 40, _NUM_BYTES // 2))
    assert 0 < _mapped_bytes("arena-view") <= 64 << 10


def test_the_last_elements_and_none_at_all_can_be_touched(view):
    view.touch(0, 0)
    view.touch(_NUM_BYTES // 2 - 1, _NUM_BYTES // 2)
    assert 0 < _mapped_bytes("arena-view") <= 64 << 10
