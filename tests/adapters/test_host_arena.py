"""Extents of one shared mapping: where they lie, who sees them, and what they cost."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from caraserve_cli.adapters.host_arena import ALIGNMENT_BYTES, ArenaExtent, HostArena
from caraserve_cli.errors import OptionError
from caraserve_kernels.lora_layout import PIECE_ALIGN_ELEMENTS

PAGE = ALIGNMENT_BYTES


@pytest.fixture
def arena() -> Iterator[HostArena]:
    """Two segments of four pages, and one of two."""
    arena = HostArena(10 * PAGE, pinned=False, segment_bytes=4 * PAGE)
    yield arena
    arena.close()


def allocated(arena: HostArena, num_bytes: int) -> ArenaExtent:
    extent = arena.allocate(num_bytes)
    assert extent is not None
    return extent


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_extent_can_be_placed_in_a_table(arena: HostArena, dtype: torch.dtype) -> None:
    for num_bytes in (64, 8192, 4, PAGE + 4):
        extent = allocated(arena, num_bytes)
        assert extent.num_bytes == num_bytes
        assert extent.offset_bytes % PAGE == 0
        assert extent.offset_bytes % (PIECE_ALIGN_ELEMENTS * dtype.itemsize) == 0
        tensor = arena.tensor(extent, dtype)
        assert (tensor.shape, tensor.dtype) == ((num_bytes // dtype.itemsize,), dtype)
    arena.check_integrity()


def test_no_extent_lies_in_two_segments(arena: HostArena) -> None:
    offsets = [allocated(arena, 3 * PAGE).offset_bytes for _ in range(2)]
    assert offsets == [0, 4 * PAGE]
    assert arena.allocate(3 * PAGE) is None, "the last segment is too short"
    assert arena.allocate(5 * PAGE) is None
    assert arena.largest_extent_bytes == 4 * PAGE
    assert allocated(arena, 1).offset_bytes == 3 * PAGE, "segments in use come first"
    assert allocated(arena, 2 * PAGE).offset_bytes == 8 * PAGE
    assert (arena.used_bytes, arena.free_bytes) == (9 * PAGE, PAGE)
    arena.check_integrity()


def test_what_was_freed_is_allocated_again(arena: HostArena) -> None:
    first = allocated(arena, 4 * PAGE)
    allocated(arena, 4 * PAGE)
    arena.free(first)
    assert allocated(arena, 4 * PAGE) == first
    with pytest.raises(KeyError):
        arena.free(ArenaExtent(PAGE, PAGE))


def test_an_extent_of_nothing_is_refused(arena: HostArena) -> None:
    with pytest.raises(ValueError, match="0 bytes"):
        arena.allocate(0)


@pytest.mark.parametrize(("asked", "given"), [(0, PAGE), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE)])
def test_the_capacity_is_whole_pages(asked: int, given: int) -> None:
    arena = HostArena(asked, pinned=False)
    assert arena.capacity_bytes == arena.largest_extent_bytes == given == os.fstat(arena.fd).st_size
    arena.close()


def test_extents_keep_their_content_apart(arena: HostArena) -> None:
    chance = random.Random(3)
    extents: dict[int, ArenaExtent] = {}
    for number in range(1, 200):
        if extents and chance.random() < 0.5:
            arena.free(extents.pop(chance.choice(list(extents))))
        if (extent := arena.allocate(4 * chance.randint(1, 2 * PAGE // 4))) is not None:
            arena.tensor(extent, torch.int32).fill_(number)
            extents[number] = extent
        for filled_with, extent in extents.items():
            assert (arena.tensor(extent, torch.int32) == filled_with).all()
        arena.check_integrity()


_OTHER_PROCESS = """
import mmap, sys
fd, offset, size = map(int, sys.argv[1:])
memory = mmap.mmap(fd, 0)
assert memory[offset : offset + size] == bytes([7]) * size
memory[offset] = 9
"""


def test_another_process_sees_the_same_memory(arena: HostArena) -> None:
    allocated(arena, PAGE)
    extent = allocated(arena, 1000)
    tensor = arena.tensor(extent, torch.uint8).fill_(7)
    command = [sys.executable, "-c", _OTHER_PROCESS, str(arena.fd), str(extent.offset_bytes), "1000"]
    subprocess.run(command, check=True, pass_fds=[arena.fd])
    assert tensor[:2].tolist() == [9, 7]


def test_memory_is_only_taken_where_something_lies() -> None:
    arena = HostArena(2**40, pinned=False)
    arena.tensor(allocated(arena, 3 * PAGE), torch.uint8).fill_(1)
    assert os.fstat(arena.fd).st_blocks * 512 < 2**22
    arena.close()


def test_tensors_outlive_the_arena_and_its_fd_does_not() -> None:
    arena = HostArena(PAGE, pinned=False)
    tensor = arena.tensor(allocated(arena, 64), torch.uint8).fill_(5)
    fd = arena.fd
    arena.close()
    arena.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert tensor.tolist() == [5] * 64


def test_an_arena_that_is_forgotten_gives_its_fd_back() -> None:
    arena = HostArena(PAGE, pinned=False)
    fd = arena.fd
    del arena
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


class FakeCuda:
    """Stands for CUDA's runtime on a machine without it, and knows what is registered."""

    def __init__(self, refuses: bool = False) -> None:
        self.sizes: dict[int, int] = {}
        self.refuses = refuses

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:  # noqa: N802  (CUDA's name)
        assert address % mmap.PAGESIZE == num_bytes % mmap.PAGESIZE == 0
        assert address not in self.sizes
        assert not any(ctypes.string_at(address, num_bytes)), "pages are made before they are registered"
        self.sizes[address] = num_bytes
        return 2 if self.refuses else 0

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802  (CUDA's name)
        del self.sizes[address]
        return 0


def check_error(result: int) -> None:
    if result:
        raise RuntimeError("out of memory")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    memory = FakeCuda()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: memory)
    monkeypatch.setattr(torch.cuda, "check_error", check_error)
    return memory


def test_a_segment_is_pinned_once_when_its_first_extent_is_used(cuda: FakeCuda) -> None:
    arena = HostArena(10 * PAGE, pinned=True, segment_bytes=4 * PAGE)
    first = allocated(arena, PAGE)
    assert cuda.sizes == {}
    arena.tensor(first, torch.uint8).fill_(1)
    arena.tensor(allocated(arena, 2 * PAGE), torch.uint8).fill_(1)
    assert list(cuda.sizes.values()) == [4 * PAGE]
    allocated(arena, 4 * PAGE)
    last = arena.tensor(allocated(arena, 2 * PAGE), torch.uint8)
    assert list(cuda.sizes.values()) == [4 * PAGE, 2 * PAGE], "the one between was not used"
    assert last.data_ptr() in cuda.sizes
    assert (arena.tensor(first, torch.uint8) == 1).all()
    arena.close()
    assert cuda.sizes == {}


def test_memory_that_cannot_be_pinned_is_named(cuda: FakeCuda) -> None:
    cuda.refuses = True
    arena = HostArena(PAGE, pinned=True)
    with pytest.raises(
        OptionError, match=r"--host-adapter-memory: .* cannot be pinned \(out of memory\); give"
    ):
        arena.tensor(allocated(arena, 1), torch.uint8)
    cuda.sizes.clear()
    arena.close()
