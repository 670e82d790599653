"""The LoRA part of one fused projection on one CPU core: x·Aᵀ·B + bias for the rows of one adapter.

The A rows of a group lie one below the other (`caraserve_kernels.lora_layout`), so one product shrinks x for
neighbouring modules; then each module's rows are expanded into its columns. Weights are read where they are,
in the form in which they are copied to the device; nothing is packed or kept.

Of torch's ways, `mm` with `out=` is as fast as any or faster, into columns of a wider result too. AMD Zen 5
core, bfloat16 through oneDNN, d = 4096, q + k + v, B stored as [lora_rank, out]; us of the shrink / of one
expand, 16 tokens at rank 8: 34 / 20, at rank 64: 100 / 52 (float32: 308 / 139); a product into a new tensor
and a copy: 23 and 55; `linear` of the transposed view: 22 and 53; `addmm` with a bias: 26 and 58. The first
product of a new shape takes 0.3 ms more.

Knows no processes and no exchange.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

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


class _Expand(NamedTuple):
    """One module: y [t, out_width] = h [t, lora_rank] · b [lora_rank, out_width] + bias [out_width]."""

    h: Tensor
    b: Tensor
    bias: Tensor | None
    y: Tensor


class GroupProducts:
    """The products of some modules of one op for the rows of one adapter, every view made: what is left is
    arithmetic.

    Args:
        x: [t, in_width], the run's dtype.
        out: [t, sum of out_widths], of which `run` overwrites the modules' columns; rows may be strided.
        arena: flat, the run's dtype.
        entry: TABLE_FIELDS of one (layer, group), its offsets in elements of `arena`.
        group: what is projected.
        modules: of the group, neighbours.
        compute_dtype: float32, or that of the run.
    """

    __slots__ = ("_a", "_expands", "_h", "_is_widened", "_x", "_zeros")

    def __init__(
        self,
        x: Tensor,
        out: Tensor,
        arena: Tensor,
        entry: Sequence[int] | NDArray[np.int64],
        group: FusedGroup,
        modules: range,
        compute_dtype: torch.dtype,
    ) -> None:
        fields = entry.tolist() if isinstance(entry, np.ndarray) else entry
        first_element = arena.storage_offset()
        first_row, stacked_rows = _stacked(fields, modules)
        self._is_widened = compute_dtype != arena.dtype
        self._x = x
        self._a = arena.as_strided(
            (group.in_width, stacked_rows),
            (1, group.in_width),
            first_element + fields[A_OFFSET] + first_row * group.in_width,
        )
        self._h = x.new_empty((x.shape[0], stacked_rows), dtype=compute_dtype)
        self._expands: list[_Expand] = []
        self._zeros: list[Tensor] = []
        column = sum(group.out_widths[: modules.start])
        for module in modules:
            first, width = FIRST_MODULE + module * MODULE_FIELDS, group.out_widths[module]
            y = out[:, column : column + width]
            column += width
            lora_rank, row = fields[first + MODULE_RANK], fields[first + MODULE_ROW] - first_row
            if lora_rank == 0:
                self._zeros.append(y)
                continue
            b_offset, bias_offset = fields[first + MODULE_B_OFFSET], fields[first + MODULE_BIAS_OFFSET]
            b = arena.as_strided((lora_rank, width), (width, 1), first_element + b_offset)
            bias = None
            if bias_offset != NO_BIAS:
                bias = arena.as_strided((width,), (1,), first_element + bias_offset)
            self._expands.append(_Expand(self._h[:, row : row + lora_rank], b, bias, y))

    def run(self) -> None:
        """Read x, write all columns of the modules."""
        for y in self._zeros:
            y.zero_()
        if not self._expands:
            return
        if self._is_widened:
            self._run_widened()
            return
        torch.mm(self._x, self._a, out=self._h)
        for h, b, bias, y in self._expands:
            if bias is None:
                torch.mm(h, b, out=y)
            else:
                torch.addmm(bias, h, b, out=y)

    def _run_widened(self) -> None:
        """Weights become float32 each time they are read: a second copy of them is what sharing avoids."""
        torch.mm(self._x.float(), self._a.float(), out=self._h)
        for h, b, bias, y in self._expands:
            product = torch.mm(h, b.float())
            y.copy_(product if bias is None else product.add_(bias))


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


def weight_extents(entry: Sequence[int], group: FusedGroup, modules: range) -> list[tuple[int, int]]:
    """The elements of the arena, each from the first to behind the last, that products of these neighbouring
    modules read; in the order in which they do."""
    first_row, stacked_rows = _stacked(entry, modules)
    extents = []
    if stacked_rows:
        a_first = entry[A_OFFSET] + first_row * group.in_width
        extents.append((a_first, a_first + stacked_rows * group.in_width))
    for module in modules:
        first, width = FIRST_MODULE + module * MODULE_FIELDS, group.out_widths[module]
        b_offset, bias_offset = entry[first + MODULE_B_OFFSET], entry[first + MODULE_BIAS_OFFSET]
        if entry[first + MODULE_RANK]:
            extents.append((b_offset, b_offset + entry[first + MODULE_RANK] * width))
        if bias_offset != NO_BIAS:
            extents.append((bias_offset, bias_offset + width))
    return extents


def _stacked(entry: Sequence[int], modules: range) -> tuple[int, int]:
    """Of these neighbouring modules' A, the first row in the group's stack, and how many they are."""
    firsts = range(
        FIRST_MODULE + modules.start * MODULE_FIELDS,
        FIRST_MODULE + modules.stop * MODULE_FIELDS,
        MODULE_FIELDS,
    )
    return entry[firsts.start + MODULE_ROW], sum(entry[first + MODULE_RANK] for first in firsts)


@cache
def choose_compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which this CPU multiplies weights of `dtype`: bfloat16 where it has AMX or AVX512-BF16,
    float32 elsewhere; and always float32 in place of float16, which oneDNN is slow at (hardware.md)."""
    is_fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if dtype == torch.bfloat16 and is_fast else torch.float32
