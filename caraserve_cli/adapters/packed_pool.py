"""The device pool of a GPU: one flat tensor in which every resident adapter is one contiguous extent.

Moves bytes where `engine.residency` planned them: within the pool in the order of the current stream, from
the host on a lane of their own (`transfers`). Decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.adapters.copy_lane import CopyLane, open_lane
from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.adapters.packing import fused_groups
from caraserve_cli.adapters.transfer import LayerCopy, Transfer
from caraserve_cli.adapters.transfers import Transfers
from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.core import BaseShape
from caraserve_cli.step_plan import AdapterMove
from caraserve_kernels.lora_layout import AdapterLayout, empty_table

# Bytes that an extent is moved by at a time, through a buffer of that size, since an extent may overlap the
# place it is moved to. Large enough that the two copies run at the memory's bandwidth. Chosen, not measured.
MOVE_BUFFER_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class _Load:
    """What is to be copied in, to which element, and who is told when it has come."""

    blob: Tensor
    first: int
    order: LayerOrder
    on_arrival: Callable[[], None]
    is_beside: bool


class PackedPool:
    """Resident adapters of one GPU, by slot.

    Args:
        shape: the base's.
        capacity_bytes: of the pool, a multiple of the residency's alignment.
        max_adapters: slots of the table, that many adapters can be resident.
        dtype: of the run.
        device: the GPU.
        lane: the way there; None for one of the pool's own.

    Attributes:
        groups: the base's fused projections, in the order of the table's third dimension.
        weights: [elements], all extents.
        table: int64 [max_adapters, layers, groups, TABLE_FIELDS], where the kernels find what.
        stacked_rows: int32 [max_adapters, groups] on the host, `AdapterLayout.stacked_rows` of each slot.
        largest_ranks: int32 [max_adapters] on the host, `AdapterLayout.largest_rank` of each slot.
        used_groups: indices of the groups that any adapter changes, of those loaded so far and those that the
            caller expects.
        transfers: of the adapters loaded; `start_copies` opens them, and what reads the adapters waits for
            `gates`.
        before_moves: called before extents are moved: what reads them elsewhere than on the current stream
            is waited for there.
    """

    def __init__(
        self,
        shape: BaseShape,
        capacity_bytes: int,
        max_adapters: int,
        dtype: torch.dtype,
        device: torch.device,
        lane: CopyLane | None = None,
    ) -> None:
        self.groups = fused_groups(shape)
        self.weights = torch.empty(capacity_bytes // dtype.itemsize, dtype=dtype, device=device)
        host_table = empty_table(max_adapters, shape.num_layers, len(self.groups))
        self.table = torch.from_numpy(host_table).to(device)
        self.stacked_rows = np.zeros((max_adapters, len(self.groups)), dtype=np.int32)
        self.largest_ranks = np.zeros(max_adapters, dtype=np.int32)
        self.used_groups: frozenset[int] = frozenset()
        self.transfers = Transfers(lane or open_lane(device), shape.num_layers)
        self.before_moves: Callable[[], None] = lambda: None
        self._layouts: dict[int, AdapterLayout] = {}
        # By slot: what is to be copied in; what is on its way; how long what has come was; from which element
        # to which one it is to be moved.
        self._loads: dict[int, _Load] = {}
        self._transfer_of: dict[int, Transfer] = {}
        self._load_ms: dict[int, float] = {}
        self._moves: dict[int, tuple[int, int]] = {}
        # The last step that read each slot; of all steps that were queued, and of those that have ended.
        self._last_reads = np.zeros(max_adapters, dtype=np.int64)
        self._last_step = self._last_ended = 0
        self._pinned = device.type == "cuda"
        self._move_buffer = self.weights.new_empty(
            min(MOVE_BUFFER_BYTES // dtype.itemsize, self.weights.numel())
        )

    def load(
        self,
        adapter_slot: int,
        weights: AdapterWeights,
        offset_bytes: int,
        order: LayerOrder | None = None,
        on_arrival: Callable[[], None] = lambda: None,
        *,
        is_beside: bool = False,
    ) -> None:
        """Have a packed adapter copied in from the next `start_copies` on.

        Args:
            adapter_slot: where it is found.
            weights: they must keep their content until `on_arrival`.
            offset_bytes: where it is placed.
            order: in which its layers are copied; from the first on by default.
            on_arrival: called, once, when they are no longer read: all has come, or nothing was begun.
            is_beside: they are for a step that is computed beside the next one.
        """
        assert weights.packed is not None
        layout, blob = weights.packed.layout, weights.packed.blob
        first = offset_bytes // blob.itemsize
        self._load_ms.pop(adapter_slot, None)
        self._loads[adapter_slot] = _Load(blob, first, order or LayerOrder(), on_arrival, is_beside)
        self._layouts[adapter_slot] = layout
        self.stacked_rows[adapter_slot] = layout.stacked_rows
        self.largest_ranks[adapter_slot] = layout.largest_rank
        self.note_groups(layout)

    def note_groups(self, layout: AdapterLayout) -> None:
        """Steps compute with an adapter of this layout, here or elsewhere."""
        self.used_groups |= set(np.flatnonzero(layout.stacked_rows).tolist())

    def start_copies(self) -> None:
        """Do the moves, and open the transfers of what was loaded, in turn or those of one order together; in
        the order in which they were loaded, those for a step beside the next one last. First layers of those
        together, which the next step waits for, begin to be copied now; the others as they are waited for, or
        with `transfers.begin`."""
        if self._loads:
            # Nothing is left of earlier ones, but where a launch has failed: it would be copied over these.
            self.transfers.begin()
        if self._moves:
            self.before_moves()
        # Extents only slide down and keep their order: none is moved onto one that is still to be moved.
        for adapter_slot, (source, target) in sorted(self._moves.items(), key=lambda item: item[1]):
            self._slide(adapter_slot, source, target)
        self._moves.clear()
        together: dict[tuple[bool, LayerOrder, int | None], list[int]] = {}
        for adapter_slot, load in self._loads.items():
            alone = adapter_slot if load.order.in_turn else None
            together.setdefault((load.is_beside, load.order, alone), []).append(adapter_slot)
        any_beside = any(load.is_beside for load in self._loads.values())
        for is_beside, order, alone in sorted(together, key=itemgetter(0)):
            transfer = self._open_transfer(order, together[is_beside, order, alone])
            if not order.in_turn:
                # A step beside the next one is launched before it, and would have all of its own come first.
                transfer.begin(None if any_beside and not is_beside else 1)
        self._loads.clear()

    def note_step(self, adapter_slots: NDArray[np.integer]) -> int:
        """A step was queued that reads these slots; its number, for `note_ended`."""
        self._last_step += 1
        self._last_reads[adapter_slots] = self._last_step
        return self._last_step

    def note_ended(self, step: int) -> None:
        """A step, and all before it, have read what they read."""
        self._last_ended = max(self._last_ended, step)

    def gates(self, adapter_slots: Iterable[int]) -> tuple[Transfer, ...]:
        """The transfers that whoever reads these slots has to wait for, each once."""
        # Each is asked once: dozens of adapters may be in one, and every one of them asks here.
        arrived = {transfer for transfer in set(self._transfer_of.values()) if transfer.has_arrived}
        for adapter_slot, transfer in tuple(self._transfer_of.items()) if arrived else ():
            if transfer in arrived:
                self._load_ms[adapter_slot] = transfer.lasted_ms
                del self._transfer_of[adapter_slot]
        of_slots = (self._transfer_of.get(adapter_slot) for adapter_slot in adapter_slots)
        return tuple(dict.fromkeys(transfer for transfer in of_slots if transfer is not None))

    def has_arrived(self, adapter_slot: int) -> bool:
        """Whether all that was loaded into a slot is there."""
        return adapter_slot not in self._loads and not self.gates([adapter_slot])

    def load_ms(self, adapter_slot: int) -> float | None:
        """How long what was loaded into a slot was on its way, from when copying it, and all that is copied
        together with it, began; None until `has_arrived`."""
        return self._load_ms.get(adapter_slot)

    def _open_transfer(self, order: LayerOrder, adapter_slots: list[int]) -> Transfer:
        loads = [self._loads[adapter_slot] for adapter_slot in adapter_slots]
        copies = self._table_copies(adapter_slots)
        for adapter_slot, load in zip(adapter_slots, loads, strict=True):
            extent = self.weights[load.first : load.first + load.blob.numel()]
            copies.append(LayerCopy(extent, load.blob, self._layouts[adapter_slot].layer_starts))

        def tell_all() -> None:
            for load in loads:
                load.on_arrival()

        transfer = self.transfers.open(copies, order, tell_all)
        self._transfer_of |= dict.fromkeys(adapter_slots, transfer)
        return transfer

    def _table_copies(self, adapter_slots: list[int]) -> list[LayerCopy]:
        """Of what the table says of slots that are loaded: slots side by side are one copy, since dozens are
        loaded at once while the device waits."""
        slots = sorted(adapter_slots)
        placed = [self._layouts[slot].placed(self._loads[slot].first) for slot in slots]
        rows = self._table_rows(np.stack(placed))
        ends = [at for at in range(1, len(slots)) if slots[at] != slots[at - 1] + 1]
        return [
            LayerCopy(self.table[slots[first] : slots[end - 1] + 1].view(-1), rows[first:end].view(-1))
            for first, end in pairwise((0, *ends, len(slots)))
        ]

    def move(self, move: AdapterMove) -> None:
        """Have an extent slid down by the next `start_copies`: once, however often it is moved until then,
        and not at all if it is evicted. What has not been copied in yet only changes where it goes."""
        source, target = (
            num_bytes // self.weights.itemsize for num_bytes in (move.from_offset_bytes, move.to_offset_bytes)
        )
        if move.adapter_slot in self._loads:
            self._loads[move.adapter_slot] = replace(self._loads[move.adapter_slot], first=target)
        else:
            source, _ = self._moves.get(move.adapter_slot, (source, target))
            self._moves[move.adapter_slot] = source, target

    def _slide(self, adapter_slot: int, source: int, target: int) -> None:
        """Piece by piece from the lowest address: an extent may overlap where it goes."""
        self.transfers.wait()  # what is on its way there, or left there since it was begun
        layout = self._layouts[adapter_slot]
        end = source + layout.num_elements
        for first in range(source, end, self._move_buffer.numel()):
            size = min(self._move_buffer.numel(), end - first)
            piece = self._move_buffer[:size]
            piece.copy_(self.weights[first : first + size])
            self.weights[first - source + target :][:size].copy_(piece)
        rows = self._table_rows(layout.placed(target)[None])
        self.table[adapter_slot].copy_(rows[0], non_blocking=True)
        self.transfers.mark_stale()

    def evict(self, adapter_slot: int) -> None:
        """Forget what a slot holds."""
        del self._layouts[adapter_slot]
        self.stacked_rows[adapter_slot] = 0
        self.largest_ranks[adapter_slot] = 0
        load = self._loads.pop(adapter_slot, None)
        if load is not None:
            load.on_arrival()
        self._transfer_of.pop(adapter_slot, None)
        self._load_ms.pop(adapter_slot, None)
        self._moves.pop(adapter_slot, None)
        # Most of those that leave were last read long ago: what comes in their place need not wait then.
        if self._last_reads[adapter_slot] > self._last_ended:
            self.transfers.mark_stale()

    def _table_rows(self, entries: NDArray[np.int64]) -> Tensor:
        """Where a copy to the device takes them from, [entries, layers, groups, fields].

        The allocator of pinned memory keeps what a copy still reads. What it was given back it lends again
        for what is of the same size only: there are two sizes, one entry and as many as the table has.
        """
        rows = torch.from_numpy(entries)
        if not self._pinned:
            return rows
        num_lent = 1 if len(entries) == 1 else len(self.table)
        lent = torch.empty(num_lent, *rows.shape[1:], dtype=rows.dtype, pin_memory=True)
        return lent[: len(entries)].copy_(rows)
