"""The adapters' arena as a worker maps it: for reading alone, its pages mapped, and brought into the cache,
ahead of their use.

Assisted adapters are the ones that a worker has not read before. Reading a page for the first time enters the
kernel: 4096 wide, rank 64, q + k + v, 16 tokens took 0.60 ms the first time and 0.41 ms afterwards (AMD Zen 5
core, 4 KiB pages). `touch` pays that while the worker has to wait anyway. `read` has the same for what the
caches do not hold: 64 KiB take 3.4 us from memory (AMD Zen 4 core), of which 1.9 are the call's.
"""

from __future__ import annotations

import mmap
import warnings
from typing import NamedTuple

import numpy as np
import torch

# Linux 5.14 and newer: maps pages for reading, as reading each of them would.
_MADV_POPULATE_READ = 22
# Pages are mapped, and noted as mapped, in pieces of this size; the kernel maps as much around each page that
# is read.
_PIECE_BYTES = 64 << 10
# Of a cache line of any CPU that this program runs on; `read` loads one byte of each.
_LINE_BYTES = 64


class Extent(NamedTuple):
    """Elements of the arena: `num_pieces` equal pieces, the first one from `first` to before `end`, each
    `stride` elements behind the one in front of it. Without a stride, one piece."""

    first: int
    end: int
    num_pieces: int = 1
    stride: int = 0

    @property
    def num_elements(self) -> int:
        return (self.end - self.first) * self.num_pieces

    @property
    def last_end(self) -> int:
        """Behind the last element of the last piece."""
        return self.end + (self.num_pieces - 1) * self.stride


class ArenaView:
    """A mapping of the arena's memfd, which need not stay open.

    Args:
        fd: of the memfd.
        num_bytes: its size.
        dtype: of its elements.

    Attributes:
        elements: the arena, flat. Writing to it ends the process, so that no mistake changes an adapter.
    """

    def __init__(self, fd: int, num_bytes: int, dtype: torch.dtype) -> None:
        self._memory = mmap.mmap(fd, num_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        self._num_bytes, self._itemsize = num_bytes, dtype.itemsize
        with warnings.catch_warnings():
            # That torch cannot forbid writing is what the mapping is for.
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            self.elements = torch.frombuffer(self._memory, dtype=dtype, count=num_bytes // dtype.itemsize)
        self._is_mapped = bytearray(-(-num_bytes // _PIECE_BYTES))

    def touch(self, first_element: int, end_element: int) -> None:
        """Map what holds these elements, as far as it was not touched before."""
        first = first_element * self._itemsize // _PIECE_BYTES
        end = -(-end_element * self._itemsize // _PIECE_BYTES)
        first = self._is_mapped.find(0, first, end)
        if first < 0:
            return
        first_byte, end_byte = first * _PIECE_BYTES, min(end * _PIECE_BYTES, self._num_bytes)
        self._is_mapped[first:end] = b"\1" * (end - first)
        try:
            self._memory.madvise(_MADV_POPULATE_READ, first_byte, end_byte - first_byte)
        except OSError:
            # An older kernel: pages are mapped when they are read.
            return

    def read(self, extent: Extent) -> None:
        """Have the cache lines of these elements in the cache; of a piece that begins within a line, the last
        one may be left out."""
        piece_lines = -(-(extent.end - extent.first) * self._itemsize // _LINE_BYTES)
        lines = np.ndarray(
            (extent.num_pieces, piece_lines),
            np.uint8,
            self._memory,
            extent.first * self._itemsize,
            (extent.stride * self._itemsize, _LINE_BYTES),
        )
        np.bitwise_or.reduce(lines, axis=None)
