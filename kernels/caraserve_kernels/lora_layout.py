"""Where an adapter's pieces lie in the device pool. numpy; no torch, no model.

The pool is one flat array of elements. An adapter is one extent of it (a *blob*), layer by layer. Within a
layer, for each fused group of modules that read the same input (q, k, v; o; gate, up; down): the A rows of
the group's modules one below the other, [sum of ranks, in], so that one product serves the group; then each
module's B rows, [lora_rank, out], B transposed with the scale folded in; then the biases, [out]. Every piece
starts at a multiple of `PIECE_ALIGN_ELEMENTS`, so that kernels may load 16 bytes at once.

Unpadded (`mbgmv`) an adapter takes what its own ranks need. Padded (`bgmv`, Punica's form) every module is
stored with `padded_rank` rows; the rows past its own rank are zero bytes, moved and multiplied like the rest.

The *table* tells the kernels where the pieces are: int64 [adapter slots, layers, groups, TABLE_FIELDS].
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PIECE_ALIGN_ELEMENTS = 64
MAX_GROUP_MODULES = 3

# Fields of a table entry: where the group's A stack is, then MODULE_FIELDS for each of its modules. 16 fields
# are 128 bytes: one cache line an entry.
A_OFFSET = 0
FIRST_MODULE = 1
MODULE_FIELDS = 4
MODULE_RANK = 0  # 0 where the adapter does not change the module
MODULE_ROW = 1  # where the module's rows begin, or would begin, in the group's stack
MODULE_B_OFFSET = 2
MODULE_BIAS_OFFSET = 3
TABLE_FIELDS = 16
NO_BIAS = -1
_END = FIRST_MODULE + MAX_GROUP_MODULES * MODULE_FIELDS
# Of a table entry, the ranks of its modules.
RANKS = slice(FIRST_MODULE + MODULE_RANK, _END, MODULE_FIELDS)
_B_OFFSETS = slice(FIRST_MODULE + MODULE_B_OFFSET, _END, MODULE_FIELDS)
_BIAS_OFFSETS = slice(FIRST_MODULE + MODULE_BIAS_OFFSET, _END, MODULE_FIELDS)

# (layer, module name)
ModuleKey = tuple[int, str]


@dataclass(frozen=True, slots=True)
class FusedGroup:
    """Modules that read the same input and are computed as one product, their outputs side by side."""

    modules: tuple[str, ...]
    in_width: int
    out_widths: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.modules) <= MAX_GROUP_MODULES or len(self.modules) != len(self.out_widths):
            raise ValueError(
                f"a group has 1 to {MAX_GROUP_MODULES} modules, each with an output width: {self}"
            )


class ModulePiece(NamedTuple):
    """Where one module of one layer lies, in elements from the blob's start.

    A is [lora_rank, in_width] at `a_offset`, B [lora_rank, out_width] at `b_offset`; both have room for
    `stored_rank` rows. `bias_offset` is NO_BIAS or where [out_width] elements lie.
    """

    lora_rank: int
    stored_rank: int
    in_width: int
    out_width: int
    a_offset: int
    b_offset: int
    bias_offset: int


@dataclass(frozen=True, slots=True, eq=False)
class AdapterLayout:
    """The layout of one adapter's blob.

    Attributes:
        num_elements: the blob's size, a multiple of `PIECE_ALIGN_ELEMENTS`.
        pieces: one for each module that the adapter changes.
        layer_starts: layer i lies in elements `layer_starts[i] … layer_starts[i + 1]`, for copies by layer.
        table: int64 [layers, groups, TABLE_FIELDS], offsets counted from the blob's start.
        is_offset: bool, of the same shape: which of its numbers move with the blob.
        stacked_rows: int32 [groups], the height of the group's tallest A stack over all layers.
        largest_rank: of any module of any layer, its own and not the padded one; 0 without modules.
    """

    num_elements: int
    pieces: Mapping[ModuleKey, ModulePiece]
    layer_starts: tuple[int, ...]
    table: NDArray[np.int64]
    is_offset: NDArray[np.bool_]
    stacked_rows: NDArray[np.int32]
    largest_rank: int

    @staticmethod
    def build(
        groups: Sequence[FusedGroup],
        num_layers: int,
        lora_ranks: Mapping[ModuleKey, int],
        biased: Collection[ModuleKey] = frozenset(),
        padded_rank: int | None = None,
    ) -> AdapterLayout:
        """Lay out an adapter that changes the modules in `lora_ranks`; those in `biased` have a bias too.

        Raises:
            ValueError: a key names no module, a rank is below 1 or above `padded_rank`, or a module has a
                bias and no rank.
        """
        _check_ranks(groups, num_layers, lora_ranks, biased, padded_rank)
        table = empty_table(1, num_layers, len(groups))[0]
        pieces: dict[ModuleKey, ModulePiece] = {}
        layer_starts = [0]
        for layer in range(num_layers):
            end = layer_starts[-1]
            for index, group in enumerate(groups):
                fused, end = _lay_out_group(group, layer, lora_ranks, biased, padded_rank, end)
                _fill_entry(table[layer, index], group, fused)
                pieces |= {(layer, module): piece for module, piece in fused.items()}
            layer_starts.append(end)
        stacked_rows = table[..., RANKS].sum(axis=-1).max(axis=0, initial=0).astype(np.int32)
        largest_rank = max(lora_ranks.values(), default=0)
        is_offset = np.zeros(table.shape, dtype=bool)
        is_offset[..., A_OFFSET] = is_offset[..., _B_OFFSETS] = True
        is_offset[..., _BIAS_OFFSETS] = table[..., _BIAS_OFFSETS] != NO_BIAS
        return AdapterLayout(end, pieces, tuple(layer_starts), table, is_offset, stacked_rows, largest_rank)

    def placed(self, first_element: int) -> NDArray[np.int64]:
        """The table of this adapter when its blob begins at element `first_element` of the pool."""
        if first_element % PIECE_ALIGN_ELEMENTS:
            raise ValueError(f"element {first_element} is no multiple of {PIECE_ALIGN_ELEMENTS}")
        return self.table + self.is_offset * np.int64(first_element)


def empty_table(num_slots: int, num_layers: int, num_groups: int) -> NDArray[np.int64]:
    """A table in which no slot holds an adapter."""
    table = np.zeros((num_slots, num_layers, num_groups, TABLE_FIELDS), dtype=np.int64)
    table[..., _BIAS_OFFSETS] = NO_BIAS
    return table


def _check_ranks(
    groups: Sequence[FusedGroup],
    num_layers: int,
    lora_ranks: Mapping[ModuleKey, int],
    biased: Collection[ModuleKey],
    padded_rank: int | None,
) -> None:
    known = {(layer, module) for layer in range(num_layers) for group in groups for module in group.modules}
    for key, lora_rank in lora_ranks.items():
        if key not in known:
            raise ValueError(f"no such module: {key}")
        if lora_rank < 1 or (padded_rank is not None and lora_rank > padded_rank):
            raise ValueError(f"{key} has rank {lora_rank}; it must be 1 to {padded_rank or 'any'}")
    for key in biased:
        if key not in lora_ranks:
            raise ValueError(f"{key} has a bias and no rank")


def _align(num_elements: int) -> int:
    return -(-num_elements // PIECE_ALIGN_ELEMENTS) * PIECE_ALIGN_ELEMENTS


def _lay_out_group(
    group: FusedGroup,
    layer: int,
    lora_ranks: Mapping[ModuleKey, int],
    biased: Collection[ModuleKey],
    padded_rank: int | None,
    end: int,
) -> tuple[dict[str, ModulePiece], int]:
    """The pieces of one group from element `end` on, and where they end."""
    present = [
        (module, out_width, lora_ranks[layer, module])
        for module, out_width in zip(group.modules, group.out_widths, strict=True)
        if (layer, module) in lora_ranks
    ]
    a_offset, pieces = end, {}
    stored_ranks = [padded_rank or lora_rank for _, _, lora_rank in present]
    end = _align(end + sum(stored_ranks) * group.in_width)
    b_offsets = []
    for (_, out_width, _), stored_rank in zip(present, stored_ranks, strict=True):
        b_offsets.append(end)
        end = _align(end + stored_rank * out_width)
    for (module, out_width, lora_rank), stored_rank, b_offset in zip(
        present, stored_ranks, b_offsets, strict=True
    ):
        bias_offset = NO_BIAS
        if (layer, module) in biased:
            bias_offset, end = end, _align(end + out_width)
        pieces[module] = ModulePiece(
            lora_rank, stored_rank, group.in_width, out_width, a_offset, b_offset, bias_offset
        )
        a_offset += stored_rank * group.in_width
    return pieces, end


def _fill_entry(entry: NDArray[np.int64], group: FusedGroup, pieces: Mapping[str, ModulePiece]) -> None:
    """Describe the pieces of one layer's group in its table entry, [TABLE_FIELDS]."""
    if not pieces:
        return
    entry[A_OFFSET] = min(piece.a_offset for piece in pieces.values())
    row = 0
    for index, module in enumerate(group.modules):
        first = FIRST_MODULE + index * MODULE_FIELDS
        entry[first + MODULE_ROW] = row
        if module in pieces:
            piece = pieces[module]
            entry[first + MODULE_RANK] = piece.stored_rank
            entry[first + MODULE_B_OFFSET] = piece.b_offset
            entry[first + MODULE_BIAS_OFFSET] = piece.bias_offset
            row += piece.stored_rank
