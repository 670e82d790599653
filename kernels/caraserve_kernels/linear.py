"""y = x · Wᵀ + bias for few tokens, at the speed at which the weights can be read.

Semantics, for token t and output column n:

    y[t, n] = round(sum over k of x[t, k] * weight[n, k] + bias[n])        summed in float32

- x      [tokens, width_in]      bfloat16, float16 or float32; rows may be strided, columns may not
- weight [width_out, width_in]   x's dtype, contiguous
- bias   [width_out] or None     x's dtype
- y      [tokens, width_out]     x's dtype

At few tokens the product is the time to read `weight` once. Each program owns a few rows of `weight` and
walks along them with many bytes on the way at any time. One token is a multiplication and a sum ("GEMV").
More tokens go through the tensor cores with the weights as the wide operand (yᵀ = W · xᵀ), so that 8 tokens
fill an instruction that would otherwise be padded to 64. Where `width_out` gives too few programs for the
device, several share the same rows, each with a part of `width_in`; the last one to finish adds the parts in
a fixed order, so that a run gives the same bits every time (split-K with a semaphore, as in cuBLAS and in
Marlin, Frantar et al. 2024).

Kernels start before the one in front of them has ended (programmatic dependent launch), ask for their first
weights to be brought to the L2 cache, and only then wait for x. That is safe whatever ran before: the L2
cache is coherent, and nothing else is read or written before the wait. A product that runs *beside* the
kernel in front of it waits for that one only before it stores: so whoever waits for the product has waited
for both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from caraserve_kernels.linear_kernels import tile_kernel, vector_kernel

# Above this cuBLAS reads its tiles as fast; see `choose_tile`.
MAX_STREAMED_TOKENS = 32
# Outputs from which a product has programs enough for tiles of 8 rows; see `choose_tile`.
_WIDE_OUTPUT = 8192
# Programs that share a product's bytes evenly keep about two of themselves on each of a Hopper's 132
# multiprocessors. H200, the four products each alone, 8 tokens, programs wanted (stages): 132 (6): 107 µs,
# 264 (4): 110, 396 (3): 110; one after the other in a layer, as here: 106, the best of each alone: 111.
_WANTED_PROGRAMS = 264
_MAX_SPLITS = 8
# 16 lets Triton 3.6 use warpgroup instructions, 8 saves padding: 109.5 and 109.7 µs a layer on an H200.
_MIN_TOKENS_BLOCK = 16
_MAX_ROW_BLOCKS = 1 << 16
_apart: ContextVar[bool] = ContextVar("apart", default=False)


class Tile(NamedTuple):
    """How one program cuts the product.

    Attributes:
        rows: of `weight`, owned by a program; 64 and more use Hopper's warpgroup instructions.
        columns: read in one step.
        num_warps: of a program.
        num_stages: steps whose reads are on the way at a time.
        num_splits: programs that share the same rows.
        columns_ahead: of each row, asked for before x is there; a multiple of `columns`, or 0.
    """

    rows: int
    columns: int
    num_warps: int
    num_stages: int
    num_splits: int
    columns_ahead: int


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, beside: bool = False) -> Tensor:
    """x · Wᵀ + bias: [T, width_in] x [width_out, width_in] -> [T, width_out].

    Products that run at the same time, on two streams of one device, must not both be split (see `Tile`):
    they would share the counters. Call it once per shape before capturing it in a graph.

    Args:
        beside: the kernel launched directly before only reads x, and let this one start after x was there:
            the product need not wait for it. Only where `is_streamed(x)`.
    """
    if not is_streamed(x):
        # float32 too: a run in float32 promises the tokens of the reference, and cuBLAS is it.
        return F.linear(x, weight, bias)
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    launch_linear(x, weight, bias, out, choose_tile(x.shape[0], *reversed(weight.shape)), beside=beside)
    return out


def is_streamed(x: Tensor) -> bool:
    """Whether the product with x is one that streams the weights; others are cuBLAS's, or the CPU's."""
    return x.is_cuda and x.dtype != torch.float32 and 0 < x.shape[0] <= MAX_STREAMED_TOKENS


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The semantics in float32, not rounded."""
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


def choose_tile(num_tokens: int, width_in: int, width_out: int) -> Tile:
    """The tile for a shape.

    H200, the four products of a Llama-2-7B layer, µs, cuBLAS against these: one token 113 / 101, 2 to 16
    tokens 113 / 106, 32 tokens 114 / 111, 64 tokens 116 / 142. At one token, (rows, columns) by product: qkv
    and gate_up (8, 512): 25.9 and 43.7, (4, 1024): 27.8 and 48.8; o and down (8, 512): 12.5 and 24.6,
    (4, 1024): 9.7 and 21.7.
    """
    if num_tokens == 1:
        rows, most_columns = (8, 512) if width_out >= _WIDE_OUTPUT else (4, 1024)
        columns = min(most_columns, triton.next_power_of_2(width_in))
        return Tile(rows, columns, num_warps=4, num_stages=1, num_splits=1, columns_ahead=columns)
    rows = 64
    columns = 128 if num_tokens <= 32 else 64
    num_splits = _WANTED_PROGRAMS // triton.cdiv(width_out, rows)
    num_steps = triton.cdiv(width_in, columns)
    # A part of fewer than four steps would be all ramp.
    num_splits = max(1, min(num_splits, _MAX_SPLITS, num_steps // 4))
    return Tile(rows, columns, num_warps=4, num_stages=4, num_splits=num_splits, columns_ahead=columns)


def launch_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, tile: Tile, *, beside: bool = False
) -> None:
    """Run the Triton product with a given tile; `out` [tokens, width_out] is overwritten."""
    num_tokens, width_in = x.shape
    width_out = weight.shape[0]
    row_blocks = triton.cdiv(width_out, tile.rows)
    overlap = can_overlap(x.device)
    # The copy engine takes 16-byte units, and nothing past a row's end.
    ahead = tile.columns_ahead if width_in % 8 == 0 and tile.columns_ahead <= width_in else 0
    constants = {
        "block_rows": tile.rows,
        "block_columns": tile.columns,
        "loop_stages": tile.num_stages,
        "even": width_in % tile.columns == 0,
        "ahead": ahead,
        "ahead_chunks": ahead_chunks(tile),
        "overlap": overlap,
        "beside": beside,
    }
    options = {"num_warps": tile.num_warps, **({"launch_pdl": True} if overlap else {})}
    if num_tokens == 1:
        vector_kernel[(row_blocks,)](x, weight, bias, out, width_in, width_out, **constants, **options)
        return
    block_tokens = tokens_block(num_tokens)
    parts, arrivals = None, None
    if tile.num_splits > 1:
        shape = (tile.num_splits, row_blocks, tile.rows, block_tokens)
        parts = torch.empty(shape, dtype=torch.float32, device=x.device)
        arrivals = arrival_counters(x.device, apart=_apart.get())
    constants |= {"block_tokens": block_tokens, "num_splits": tile.num_splits}
    tile_kernel[(row_blocks, tile.num_splits)](
        *(x, weight, bias, out, parts, arrivals, num_tokens, width_in, width_out, x.stride(0)),
        **constants,
        **options,
    )


def tokens_block(num_tokens: int) -> int:
    """The columns of yᵀ that a program computes: a kernel is compiled for each."""
    return int(max(_MIN_TOKENS_BLOCK, triton.next_power_of_2(num_tokens)))


def ahead_chunks(tile: Tile) -> int:
    """Into how many pieces a row's first bytes are cut, so that each thread asks for one."""
    threads_per_row = max(1, 32 * tile.num_warps // tile.rows)
    return max(1, min(threads_per_row, tile.columns_ahead // 8))


def can_overlap(device: torch.device) -> bool:
    """Whether a kernel on `device` may start before the one in front of it has ended (Hopper and later)."""
    return device.type == "cuda" and _capability(device)[0] >= 9


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@contextmanager
def counters_apart() -> Iterator[None]:
    """Products launched, or captured, in here may run at the same time as any launched elsewhere, though not
    as one another."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


@cache
def arrival_counters(device: torch.device, *, apart: bool = False) -> Tensor:
    """Zeros that every split product leaves as zeros: made once, so that no launch has to clear them; others
    for those within `counters_apart`."""
    return torch.zeros(_MAX_ROW_BLOCKS, dtype=torch.int32, device=device)
