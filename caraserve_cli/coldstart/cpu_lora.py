"""The LoRA part of one fused projection on one CPU core: x·Aᵀ·B + bias for the rows of one adapter.

The A rows of a group lie one below the other (`caraserve_kernels.lora_layout`), so one product shrinks x for
neighbouring modules; then each module's rows are expanded into its columns. Weights are read where they are,
in the form in which they are copied to the device; nothing is packed or kept. Several workers may share the
products: each takes a slice of the A rows, then, when all have done so, a slice of each module's columns.

Of torch's ways, `mm` with `out=` is as fast as any or faster, into columns of a wider result too. AMD Zen 5
core, bfloat16 through oneDNN, d = 4096, q + k + v, B stored as [lora_rank, out]; us of the shrink / of one
expand, 16 tokens at rank 8: 34 / 20, at rank 64: 100 / 52 (float32: 308 / 139); a product into a new tensor
and a copy: 23 and 55; `linear` of the transposed view: 22 and 53; `addmm` with a bias: 26 and 58. The first
product of a new shape takes 0.3 ms more. Two workers that share o, rank 64, 16 tokens, take 105 us in place
of the 177 of one (two AMD Zen 4 cores, weights read ahead); less than 1 of it they wait for each other.

Knows no processes and no exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.coldstart.arena_view import Extent
from caraserve_cli.perf.op_cut import WHOLE, Slice
from caraserve_kernels.lora_layout import (
    A_OFFSET,
    FIRST_MODULE,
    MODULE_B_OFFSET,
    MODULE_BIAS_OFFSET,
    MODULE_FIELDS,
    MODULE_RANK,
    MODULE_ROW,
    NO_BIAS,
    FusedGroup,
)

# oneDNN's bfloat16 product on AMX reads past the end of h's rows where lora_rank is not a multiple of this,
# and multiplies what lies there by zero: a NaN comes through (torch 2.13 on an Intel Xeon: 17 rows and more,
# odd ranks, and even ones from 34 on).
_WHOLE_RANKS = 4


class _Expand(NamedTuple):
    """Columns of one module: y [t, n] = h [t, lora_rank] · b [lora_rank, n] + bias [n], in float32 if it is
    widened."""

    h: Tensor
    b: Tensor
    bias: Tensor | None
    y: Tensor
    is_widened: bool


class GroupProducts:
    """The products of some modules of one op for the rows of one adapter, or one of several equal shares of
    them, every view made: what is left is arithmetic.

    Args:
        x: [t, in_width], the run's dtype.
        out: [t, sum of out_widths], of which `run` overwrites the modules' columns; rows may be strided.
        arena: flat, the run's dtype.
        entry: TABLE_FIELDS of one (layer, group), its offsets in elements of `arena`.
        group: what is projected.
        modules: of the group, neighbours.
        compute_dtype: float32, or that of the run.
        own: slice of the modules' A rows, and of the columns of each, that this share has.
        h: [t, ranks of the modules side by side], compute dtype, between all shares; rows may be strided. By
            default memory of its own, which is right where there is one share.
    """

    __slots__ = ("_a", "_expands", "_h", "_is_widened", "_own_h", "_x", "_zeros")

    def __init__(
        self,
        x: Tensor,
        out: Tensor,
        arena: Tensor,
        entry: Sequence[int] | NDArray[np.int64],
        group: FusedGroup,
        modules: range,
        compute_dtype: torch.dtype,
        own: Slice = WHOLE,
        h: Tensor | None = None,
    ) -> None:
        fields = entry.tolist() if isinstance(entry, np.ndarray) else entry
        first_element = arena.storage_offset()
        stacked = stacked_ranks(fields, modules)
        own_ranks = own.of(len(stacked))
        self._is_widened = compute_dtype != arena.dtype
        self._x = x
        self._a = arena.as_strided(
            (group.in_width, len(own_ranks)),
            (1, group.in_width),
            first_element + fields[A_OFFSET] + (stacked.start + own_ranks.start) * group.in_width,
        )
        self._h = x.new_empty((x.shape[0], len(stacked)), dtype=compute_dtype) if h is None else h
        self._own_h = self._h[:, own_ranks.start : own_ranks.stop]
        self._expands: list[_Expand] = []
        self._zeros: list[Tensor] = []
        for module, columns in zip(modules, own_columns(group, modules, own), strict=True):
            first, width = FIRST_MODULE + module * MODULE_FIELDS, group.out_widths[module]
            y, first_column = out[:, columns], own.of(width).start
            lora_rank, row = fields[first + MODULE_RANK], fields[first + MODULE_ROW] - stacked.start
            if lora_rank == 0:
                self._zeros.append(y)
                continue
            b_offset, bias_offset = fields[first + MODULE_B_OFFSET], fields[first + MODULE_BIAS_OFFSET]
            offset = first_element + first_column
            b = arena.as_strided((lora_rank, y.shape[1]), (width, 1), offset + b_offset)
            bias = None
            if bias_offset != NO_BIAS:
                bias = arena.as_strided((y.shape[1],), (1,), offset + bias_offset)
            is_widened = self._is_widened or (b.dtype != torch.float32 and lora_rank % _WHOLE_RANKS != 0)
            self._expands.append(_Expand(self._h[:, row : row + lora_rank], b, bias, y, is_widened))

    def run(self) -> None:
        """Read x, write all columns of the modules; where there is one share."""
        self.shrink()
        self.expand()

    def shrink(self) -> None:
        """Read x, write this share of h."""
        if not self._own_h.shape[1]:
            return
        # Weights become float32 each time they are read: a second copy of them is what sharing avoids.
        if self._is_widened:
            torch.mm(self._x.float(), self._a.float(), out=self._own_h)
        else:
            torch.mm(self._x, self._a, out=self._own_h)

    def expand(self) -> None:
        """Read all of h, write this share of the columns."""
        for y in self._zeros:
            y.zero_()
        for h, b, bias, y, is_widened in self._expands:
            if is_widened:
                product = torch.mm(h.float(), b.float())
                y.copy_(product if bias is None else product.add_(bias))
            elif bias is None:
                torch.mm(h, b, out=y)
            else:
                torch.addmm(bias, h, b, out=y)


def add_group(
    x: Tensor,
    out: Tensor,
    arena: Tensor,
    entry: Sequence[int] | NDArray[np.int64],
    group: FusedGroup,
    compute_dtype: torch.dtype | None = None,
) -> None:
    """out = x·Aᵀ·B + bias, module by module side by side; zeros for modules that the adapter does not change.

    Args:
        x: [t, in_width], the run's dtype.
        out: [t, sum of out_widths], overwritten; rows may be strided.
        arena: flat, the run's dtype.
        entry: TABLE_FIELDS of one (layer, group), its offsets in elements of `arena`.
        group: what is projected.
        compute_dtype: float32, or that of the run; by default what this CPU is fast at.
    """
    dtype = choose_compute_dtype(arena.dtype) if compute_dtype is None else compute_dtype
    GroupProducts(x, out, arena, entry, group, range(len(group.modules)), dtype).run()


def weight_extents(
    entry: Sequence[int], group: FusedGroup, modules: range, own: Slice = WHOLE
) -> list[Extent]:
    """What of the arena this slice of the products of these neighbouring modules reads; in the order in which
    it does."""
    stacked = stacked_ranks(entry, modules)
    own_ranks = own.of(len(stacked))
    extents = []
    if own_ranks:
        a_offset = entry[A_OFFSET] + stacked.start * group.in_width
        extents.append(
            Extent(a_offset + own_ranks.start * group.in_width, a_offset + own_ranks.stop * group.in_width)
        )
    for module in modules:
        first, width = FIRST_MODULE + module * MODULE_FIELDS, group.out_widths[module]
        lora_rank, columns = entry[first + MODULE_RANK], own.of(width)
        b_offset, bias_offset = entry[first + MODULE_B_OFFSET], entry[first + MODULE_BIAS_OFFSET]
        if lora_rank and len(columns) == width:
            extents.append(Extent(b_offset, b_offset + lora_rank * width))
        elif lora_rank and columns:
            extents.append(Extent(b_offset + columns.start, b_offset + columns.stop, lora_rank, width))
        if bias_offset != NO_BIAS and columns:
            extents.append(Extent(bias_offset + columns.start, bias_offset + columns.stop))
    return extents


def own_columns(group: FusedGroup, modules: range, own: Slice) -> list[slice]:
    """Of each of these modules this slice of its columns, counted from the group's first."""
    firsts = list(accumulate(group.out_widths, initial=0))
    columns = ((firsts[module], own.of(group.out_widths[module])) for module in modules)
    return [slice(first + part.start, first + part.stop) for first, part in columns]


def stacked_ranks(entry: Sequence[int], modules: range) -> range:
    """The rows of these neighbouring modules in the stack of the group's A."""
    firsts = range(
        FIRST_MODULE + modules.start * MODULE_FIELDS,
        FIRST_MODULE + modules.stop * MODULE_FIELDS,
        MODULE_FIELDS,
    )
    first_row = entry[firsts.start + MODULE_ROW]
    return range(first_row, first_row + sum(entry[first + MODULE_RANK] for first in firsts))


@cache
def choose_compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which this CPU multiplies weights of `dtype`: bfloat16 where it has AMX or AVX512-BF16,
    float32 elsewhere; and always float32 in place of float16, which oneDNN is slow at (hardware.md)."""
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if dtype == torch.bfloat16 and is_fast else torch.float32
