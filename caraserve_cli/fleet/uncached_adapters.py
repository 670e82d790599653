"""Adapters for measurements of CPU workers: random weights in shared memory, of which no cache has any when
they are used.

Each lies behind the last one, and again at the start where the memory ends, so that between two uses of a
weight all others are read. Knows no workers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from caraserve_cli.adapters.host_arena import HostArena, arena_bytes
from caraserve_cli.adapters.module_key import ModuleKey
from caraserve_cli.adapters.weights import AdapterWeights, LoraPair, PackedWeights
from caraserve_kernels.lora_layout import AdapterLayout

# Of the caches of the machines that this is for the largest have 300 MB.
MORE_THAN_CACHES_BYTES = 400 * 10**6
# Random elements, of which the memory is made by copying.
_BLOCK_ELEMENTS = 4 * 2**20
_WEIGHT_STD = 0.02


class UncachedAdapters:
    """Memory full of weights.

    Args:
        num_elements: of the memory, as many as the largest adapter at least; caches hold none of them where
            they are MORE_THAN_CACHES_BYTES, or all are used once.
        dtype: of the weights.

    Raises:
        OSError: there is no memory for them.
    """

    def __init__(self, num_elements: int, dtype: torch.dtype) -> None:
        num_bytes = num_elements * dtype.itemsize
        # In one segment, for adapters lie anywhere in it.
        self._arena = HostArena(num_bytes, pinned=False, segment_bytes=arena_bytes(num_bytes))
        extent = self._arena.allocate(num_bytes)
        assert extent is not None, "the arena is empty, and as large"
        self._weights = self._arena.tensor(extent, dtype)
        block = torch.empty(min(_BLOCK_ELEMENTS, num_elements)).normal_(std=_WEIGHT_STD).to(dtype)
        for first in range(0, num_elements, block.numel()):
            piece = self._weights[first : first + block.numel()]
            piece.copy_(block[: piece.numel()])
        self._first_element = 0

    @property
    def fd(self) -> int:
        """Of the memory, for processes to map; closed by `close`."""
        return self._arena.fd

    @property
    def num_bytes(self) -> int:
        """Of the memory that `fd` is of."""
        return self._arena.capacity_bytes

    def next(self, layout: AdapterLayout) -> AdapterWeights:
        """An adapter of this layout, behind the last one."""
        if self._first_element + layout.num_elements > self._weights.numel():
            self._first_element = 0
        first = self._first_element
        self._first_element += layout.num_elements
        blob = self._weights[first : self._first_element]
        packed = PackedWeights(layout, blob, first * blob.itemsize)
        return AdapterWeights("measured", _pairs(blob, layout), packed)

    def close(self) -> None:
        """Close the fd; no worker must still read it."""
        self._arena.close()


def _pairs(blob: Tensor, layout: AdapterLayout) -> dict[ModuleKey, LoraPair]:
    def rows(offset: int, lora_rank: int, width: int) -> Tensor:
        return blob[offset : offset + lora_rank * width].view(lora_rank, width)

    return {
        key: LoraPair(
            rows(piece.a_offset, piece.lora_rank, piece.in_width),
            rows(piece.b_offset, piece.lora_rank, piece.out_width),
        )
        for key, piece in layout.pieces.items()
    }
