"""The device pool of a GPU: one flat tensor in which every resident adapter is one contiguous extent.

Moves bytes where `engine.residency` planned them: within the pool in the order of the current stream, from
the host on a stream of their own (`layer_copies`). Decides nothing.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.adapters.layer_copies import LayerCopies
from caraserve_cli.adapters.packing import fused_groups
from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.core import AdapterMove, BaseShape
from caraserve_kernels.lora_layout import AdapterLayout, empty_table

# Bytes that an extent is moved by at a time, through a buffer of that size, since an extent may overlap the
# place it is moved to. Large enough that the two copies run at the memory's bandwidth. Chosen, not measured.
MOVE_BUFFER_BYTES = 64 * 2**20


class PackedPool:
    """Resident adapters of one GPU, by slot.

    Args:
        shape: the base's.
        capacity_bytes: of the pool, a multiple of the residency's alignment.
        max_adapters: slots of the table, that many adapters can be resident.
        dtype: of the run.
        device: the GPU.

    Attributes:
        groups: the base's fused projections, in the order of the table's third dimension.
        weights: [elements], all extents.
        table: int64 [max_adapters, layers, groups, TABLE_FIELDS], where the kernels find what.
        stacked_rows: int32 [max_adapters, groups] on the host, `AdapterLayout.stacked_rows` of each slot.
        largest_ranks: int32 [max_adapters] on the host, `AdapterLayout.largest_rank` of each slot.
        used_groups: indices of the groups that any adapter changes, of those loaded so far and those that the
            caller expects.
        copies: of the adapters loaded; they begin with `start_copies`, and what reads them waits for them.
    """

    def __init__(
        self,
        shape: BaseShape,
        capacity_bytes: int,
        max_adapters: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.groups = fused_groups(shape)
        self.weights = torch.empty(capacity_bytes // dtype.itemsize, dtype=dtype, device=device)
        host_table = empty_table(max_adapters, shape.num_layers, len(self.groups))
        self.table = torch.from_numpy(host_table).to(device)
        self.stacked_rows = np.zeros((max_adapters, len(self.groups)), dtype=np.int32)
        self.largest_ranks = np.zeros(max_adapters, dtype=np.int32)
        self.used_groups: frozenset[int] = frozenset()
        self.copies = LayerCopies(device, shape.num_layers)
        self._layouts: dict[int, AdapterLayout] = {}
        # By slot: what is to be copied in, and to which element; from which to which one it is to be moved.
        self._loads: dict[int, tuple[Tensor, int]] = {}
        self._moves: dict[int, tuple[int, int]] = {}
        self._pinned = device.type == "cuda"
        self._move_buffer = self.weights.new_empty(
            min(MOVE_BUFFER_BYTES // dtype.itemsize, self.weights.numel())
        )

    def load(self, adapter_slot: int, weights: AdapterWeights, offset_bytes: int) -> None:
        """Have a packed adapter copied in by the next `start_copies`."""
        assert weights.packed is not None
        layout, blob = weights.packed.layout, weights.packed.blob
        self._loads[adapter_slot] = blob, offset_bytes // blob.itemsize
        self._layouts[adapter_slot] = layout
        self.stacked_rows[adapter_slot] = layout.stacked_rows
        self.largest_ranks[adapter_slot] = layout.largest_rank
        self.used_groups |= set(np.flatnonzero(layout.stacked_rows).tolist())

    def start_copies(self) -> None:
        """Do the moves, and begin to copy what was loaded, without waiting; see `LayerCopies.start`."""
        # Extents only slide down and keep their order: none is moved onto one that is still to be moved.
        for adapter_slot, (source, target) in sorted(self._moves.items(), key=lambda item: item[1]):
            self._slide(adapter_slot, source, target)
        self._moves.clear()
        for adapter_slot, (blob, first) in self._loads.items():
            layout = self._layouts[adapter_slot]
            rows = self._table_rows(layout.placed(first)).view(-1)
            with_first_layer = (0, *[rows.numel()] * (len(layout.layer_starts) - 1))
            self.copies.queue(self.table[adapter_slot].view(-1), rows, with_first_layer)
            self.copies.queue(self.weights[first : first + blob.numel()], blob, layout.layer_starts)
        self._loads.clear()
        self.copies.start()

    def move(self, move: AdapterMove) -> None:
        """Have an extent slid down by the next `start_copies`: once, however often it is moved until then,
        and not at all if it is evicted. What has not been copied in yet only changes where it goes."""
        source, target = (
            num_bytes // self.weights.itemsize for num_bytes in (move.from_offset_bytes, move.to_offset_bytes)
        )
        if move.adapter_slot in self._loads:
            blob, _ = self._loads[move.adapter_slot]
            self._loads[move.adapter_slot] = blob, target
        else:
            source, _ = self._moves.get(move.adapter_slot, (source, target))
            self._moves[move.adapter_slot] = source, target

    def _slide(self, adapter_slot: int, source: int, target: int) -> None:
        """Piece by piece from the lowest address: an extent may overlap where it goes."""
        self.copies.wait()  # a launch that ran out of memory may have left some under way
        layout = self._layouts[adapter_slot]
        end = source + layout.num_elements
        for first in range(source, end, self._move_buffer.numel()):
            size = min(self._move_buffer.numel(), end - first)
            piece = self._move_buffer[:size]
            piece.copy_(self.weights[first : first + size])
            self.weights[first - source + target :][:size].copy_(piece)
        self.table[adapter_slot].copy_(self._table_rows(layout.placed(target)), non_blocking=True)
        self.copies.mark_stale()

    def evict(self, adapter_slot: int) -> None:
        """Forget what a slot holds."""
        del self._layouts[adapter_slot]
        self.stacked_rows[adapter_slot] = 0
        self.largest_ranks[adapter_slot] = 0
        self._loads.pop(adapter_slot, None)
        self._moves.pop(adapter_slot, None)
        self.copies.mark_stale()

    def _table_rows(self, entries: NDArray[np.int64]) -> Tensor:
        """Where a copy to the device takes them from; the allocator of pinned memory keeps what one reads."""
        rows = torch.from_numpy(entries)
        return rows.pin_memory() if self._pinned else rows
