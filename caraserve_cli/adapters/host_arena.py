"""Host memory for packed adapters: one memfd that this process and CPU workers map; pinned, beside a GPU.

Its addresses are cut into segments. Memory is taken, and pinned, a segment at a time and only when an adapter
comes to lie there: an arena of 30 GB with three small adapters costs one segment. Knows bytes, no adapters.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from typing import NamedTuple

import torch
from torch import Tensor

from caraserve_cli.adapters.extents import ExtentMap
from caraserve_cli.errors import OptionError

# Of every extent: a page, so that workers may map or lock one alone, and a multiple of what the pieces of
# a blob are aligned to (`lora_layout.PIECE_ALIGN_ELEMENTS`) in every dtype.
ALIGNMENT_BYTES = 4096
# An adapter of rank 64 on q, k, v, o of Llama-2-7B is 128 MiB: eight fit. Chosen, not measured.
SEGMENT_BYTES = 2**30
# cudaHostRegisterPortable | cudaHostRegisterMapped: kernels of any device address it.
_CUDA_REGISTER_FLAGS = 0x01 | 0x02


class ArenaExtent(NamedTuple):
    """Bytes of the arena: as many as were asked for, from a multiple of `ALIGNMENT_BYTES` on."""

    offset_bytes: int
    num_bytes: int


def arena_bytes(num_bytes: int) -> int:
    """What an extent of `num_bytes` takes of an arena."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class HostArena:
    """Extents of one shared mapping.

    `allocate` and `free` belong under the caller's lock. `tensor` takes a lock of its own while it pins,
    which can last for a good part of a second, and may be called from any thread.

    Tensors of pinned extents are pinned to torch (it asks the driver, to which registered memory is host
    memory), so `copy_(non_blocking=True)` returns at once. Torch does not keep what such a copy reads, as
    it does with memory of its own allocator: an extent must not be freed while one is under way.

    Args:
        capacity_bytes: rounded up to whole pages, at least one.
        pinned: whether to register what is used with CUDA.
        segment_bytes: no extent is larger, and none lies in two segments; a multiple of `ALIGNMENT_BYTES`.

    Attributes:
        fd: of the memory, for processes to map; closed by `close`.
        capacity_bytes: of the mapping.
    """

    def __init__(self, capacity_bytes: int, *, pinned: bool, segment_bytes: int = SEGMENT_BYTES) -> None:
        assert segment_bytes % ALIGNMENT_BYTES == 0
        self.capacity_bytes = max(ALIGNMENT_BYTES, arena_bytes(capacity_bytes))
        self._segment_bytes = min(segment_bytes, self.capacity_bytes)
        # Those in which something was ever allocated.
        self._segments: list[ExtentMap] = []
        self._pinned = pinned
        self._pin_lock = threading.Lock()
        self._pinned_segments: set[int] = set()
        self.fd = os.memfd_create("caraserve-adapters")
        try:
            os.ftruncate(self.fd, self.capacity_bytes)
            memory = mmap.mmap(self.fd, self.capacity_bytes)
        except BaseException:
            os.close(self.fd)
            raise
        # [capacity_bytes]. It keeps the mapping, which goes with the last tensor of it.
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._registered: list[int] = []
        self._finalizer = weakref.finalize(self, _give_back, self.fd, self._registered)
        self._finalizer.atexit = False  # The end of a process gives all of it back.

    @property
    def largest_extent_bytes(self) -> int:
        """What an empty arena has room for in one extent."""
        return self._segment_bytes

    @property
    def used_bytes(self) -> int:
        """Of all extents, in whole pages."""
        return sum(segment.used_bytes for segment in self._segments)

    @property
    def free_bytes(self) -> int:
        """Of all holes together."""
        return self.capacity_bytes - self.used_bytes

    def allocate(self, num_bytes: int) -> ArenaExtent | None:
        """A new extent; None if no hole is large enough. Segments that are in use come first.

        Raises:
            ValueError: `num_bytes` is not above zero.
        """
        for index, segment in enumerate(self._segments):
            if (extent := self._allocate_in(index, segment, num_bytes)) is not None:
                return extent
        while (start := len(self._segments) * self._segment_bytes) < self.capacity_bytes:
            size = min(self._segment_bytes, self.capacity_bytes - start)
            self._segments.append(ExtentMap(size))
            extent = self._allocate_in(len(self._segments) - 1, self._segments[-1], num_bytes)
            if extent is not None:
                return extent
        return None

    def free(self, extent: ArenaExtent) -> None:
        """Give back an extent; tensors of it show what comes to lie there next.

        Raises:
            KeyError: there is none at its offset.
        """
        index, offset = divmod(extent.offset_bytes, self._segment_bytes)
        self._segments[index].free(offset)

    def tensor(self, extent: ArenaExtent, dtype: torch.dtype) -> Tensor:
        """The extent's memory, flat, [num_bytes / itemsize]. Its content is whatever was there before.

        Raises:
            OptionError: its segment cannot be pinned.
        """
        if self._pinned:
            self._pin(extent.offset_bytes // self._segment_bytes)
        return self._bytes[extent.offset_bytes :][: extent.num_bytes].view(dtype)

    def close(self) -> None:
        """Take it back from CUDA and close the fd; no device must still read it. Tensors of it keep their
        memory. A second call does nothing."""
        self._finalizer()

    def check_integrity(self) -> None:
        """Raises AssertionError where extents and holes do not tile the segments; for tests."""
        for segment in self._segments:
            segment.check_integrity()

    def _allocate_in(self, index: int, segment: ExtentMap, num_bytes: int) -> ArenaExtent | None:
        # An extent map asks for numbers above zero; rounding up does not make one of a zero.
        offset = segment.allocate(arena_bytes(num_bytes))
        return None if offset is None else ArenaExtent(index * self._segment_bytes + offset, num_bytes)

    def _pin(self, index: int) -> None:
        with self._pin_lock:
            if index in self._pinned_segments:
                return
            start = index * self._segment_bytes
            # Extents are allocated before they are pinned: nothing of the segment has been written yet.
            # Its pages are made here and not by the driver, which holds locks that launches may wait for.
            segment = self._bytes[start : start + self._segment_bytes].zero_()
            try:
                cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
                torch.cuda.check_error(
                    cudart.cudaHostRegister(segment.data_ptr(), segment.nbytes, _CUDA_REGISTER_FLAGS)
                )
            except RuntimeError as error:
                raise OptionError(
                    f"--host-adapter-memory: {segment.nbytes / 1e9:.4g} GB more of the host's memory cannot "
                    f"be pinned ({error}); give less, or raise the limit of locked memory (ulimit -l)"
                ) from error
            self._registered.append(segment.data_ptr())
            self._pinned_segments.add(index)


def _give_back(fd: int, registered: list[int]) -> None:
    if registered:
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        while registered:
            torch.cuda.check_error(cudart.cudaHostUnregister(registered.pop()))
    os.close(fd)
