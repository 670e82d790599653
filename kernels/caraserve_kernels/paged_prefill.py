"""Causal attention of ragged chunks of new tokens over the paged KV cache.

*Semantics*: sequence s has the queries cu_query[s] … cu_query[s + 1] - 1 of the flat batch, n of them, which
are the last of its len[s] positions: row i is at position p = len[s] - n + i. For head h with kv head
g = h // (H / KVH), over the keys j = max(0, p - window + 1) … p (from 0 where window is 0):

    out[cu_query[s] + i, h] = sum_j softmax_j(scale * query[cu_query[s] + i, h] . K[g, j]) V[g, j]

Shapes and dtypes: `query`, `out` [T, H, D]; `key_cache`, `value_cache` [KVH, blocks, block_tokens, D]; all of
one dtype. `block_tables` [S, blocks of the longest], `cu_query` [S + 1], `context_lens` [S], all int32; keys
and values of the chunk are already in the cache. `tiles` [n, 2] int32: a sequence and the first of its query
rows, one program a kv head for each; a negative sequence is padding. Rows of no tile are not written.

The heads that share a kv head are rows of one tile, so that a tile reads every key once, and a chunk of few
tokens fills its tile.

Source: FlashAttention-2 (Dao 2023), PagedAttention (Kwon et al. 2023) for the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from caraserve_kernels.paged_attention import (
    LOG2_E,
    UNSEEN,
    attend_sequence_reference,
    cache_rows,
    check_cache,
    padded_head_dim,
    row_mask,
)


@dataclass(frozen=True, slots=True)
class PrefillTiling:
    """How chunks are cut and the kernel is launched: rows (a query token and a head of the group each) and
    keys of a tile, warps a program, tiles of keys in flight."""

    block_rows: int
    block_keys: int
    num_warps: int
    num_stages: int

    def query_tokens(self, group: int) -> int:
        """Query tokens of one tile where `group` heads share a kv head."""
        return self.block_rows // group


# H200, bfloat16, 32 heads of 128, 8 chunks of 1,024 / 32 of 256 / one of 512 after 3,584 tokens, by (rows,
# keys, warps, stages), µs: (64, 32, 4, 5): 265 / 119 / 118, (64, 64, 4, 3): 287 / 139 / 114, (128, 64, 8, 5):
# 287 / 161 / 94, (16, 64, 4, 3): 770 / 314 / 316. WIDE and SHORT are chosen, not measured.
TILING = PrefillTiling(block_rows=64, block_keys=32, num_warps=4, num_stages=5)
SHORT_TILING = PrefillTiling(block_rows=16, block_keys=64, num_warps=4, num_stages=3)
WIDE_TILING = PrefillTiling(block_rows=64, block_keys=32, num_warps=4, num_stages=2)
# Products in float32 run on the plain cores, from registers: with 4 warps the compiler spills 408 bytes a
# thread, with 8 warps 48.
FLOAT32_TILING = PrefillTiling(block_rows=32, block_keys=32, num_warps=8, num_stages=1)


def choose_prefill_tiling(
    max_query_tokens: int, group: int, head_dim: int, dtype: torch.dtype
) -> PrefillTiling:
    """The tiling for a step whose longest chunk has `max_query_tokens`; `group` heads share a kv head."""
    if dtype == torch.float32:
        return FLOAT32_TILING
    if head_dim > 128:
        return WIDE_TILING
    rows = max_query_tokens * group
    return SHORT_TILING if rows <= SHORT_TILING.block_rows else TILING


def build_prefill_tiles(
    num_queries: Sequence[int], context_lens: Sequence[int], query_tokens: int
) -> list[tuple[int, int]]:
    """Rows of `tiles` for sequences with these many queries, `query_tokens` to a tile; none for none.

    Those with the most keys come first, so that no long one is left running alone at the end.
    """
    tiles = [
        (sequence, first)
        for sequence, count in enumerate(num_queries)
        for first in range(0, count, query_tokens)
    ]
    return sorted(tiles, key=lambda tile: num_queries[tile[0]] - context_lens[tile[0]] - tile[1])


def paged_prefill(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    cu_query: Tensor,
    context_lens: Tensor,
    window: int,
    scale: float,
    out: Tensor,
    tiles: Tensor,
    tiling: PrefillTiling,
) -> None:
    """The operator described above, by the device of its tensors; `tiles` are of `tiling`'s query tokens."""
    if query.is_cuda:
        launch_paged_prefill(
            query,
            key_cache,
            value_cache,
            block_tables,
            cu_query,
            context_lens,
            window,
            scale,
            out,
            tiles,
            tiling,
        )
    else:
        paged_prefill_reference(
            query, key_cache, value_cache, block_tables, cu_query, context_lens, window, scale, out
        )


def launch_paged_prefill(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    cu_query: Tensor,
    context_lens: Tensor,
    window: int,
    scale: float,
    out: Tensor,
    tiles: Tensor,
    tiling: PrefillTiling,
) -> None:
    """The Triton kernel."""
    _, num_heads, head_dim = query.shape
    num_kv_heads, _, block_tokens, _ = key_cache.shape
    check_cache(query, key_cache, value_cache, block_tables)
    assert out.stride(2) == 1
    assert tiles.is_contiguous()
    group = num_heads // num_kv_heads
    assert group <= tiling.block_rows
    if tiles.shape[0] == 0:
        return
    # Tiles of one kv head run side by side: its keys, read by many of them, stay in the cache.
    _paged_prefill_kernel[(tiles.shape[0], num_kv_heads)](
        query, key_cache, value_cache, block_tables, cu_query, context_lens, out, tiles, scale * LOG2_E,
        query.stride(0), query.stride(1), out.stride(0), out.stride(1), key_cache.stride(0),
        key_cache.stride(1), key_cache.stride(2), block_tables.stride(0),
        group=group, head_dim=head_dim, block_dim=padded_head_dim(head_dim), block_tokens=block_tokens,
        block_rows=tiling.block_rows, block_keys=tiling.block_keys, window=window,
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _paged_prefill_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, value_cache, block_tables, cu_query, context_lens, out, tiles, scale_log2,
    stride_query_token, stride_query_head, stride_out_token, stride_out_head, stride_cache_head,
    stride_cache_block, stride_cache_token, stride_table,
    group: tl.constexpr, head_dim: tl.constexpr, block_dim: tl.constexpr, block_tokens: tl.constexpr,
    block_rows: tl.constexpr, block_keys: tl.constexpr, window: tl.constexpr,
):  # fmt: skip
    """One program: a tile of query tokens of one sequence for the heads that share one kv head."""
    query_tokens: tl.constexpr = block_rows // group
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = tl.load(tiles + tile * 2)
    first_query = tl.load(tiles + tile * 2 + 1)
    if sequence < 0:
        return
    first_token = tl.load(cu_query + sequence)
    num_queries = tl.load(cu_query + sequence + 1) - first_token
    start_position = tl.load(context_lens + sequence) - num_queries + first_query
    num_tokens = tl.minimum(query_tokens, num_queries - first_query)

    rows = tl.arange(0, block_rows)
    tokens = (first_token + first_query + rows // group).to(tl.int64)[:, None]
    heads = (kv_head * group + rows % group)[:, None]
    dims = tl.arange(0, block_dim)[None, :]
    mask = row_mask(rows // group < num_tokens, head_dim, block_dim)
    source = query + tokens * stride_query_token + heads * stride_query_head + dims
    q = tl.load(source, mask=mask, other=0.0)
    positions = start_position + rows // group

    # Keys that all rows see need no mask; where there is a window, all are masked.
    end = start_position + num_tokens
    first = 0
    seen_by_all = (start_position + 1) // block_keys * block_keys
    if window > 0:
        first = tl.maximum(start_position + 1 - window, 0)
        seen_by_all = first
    keys_of_head = key_cache + kv_head.to(tl.int64) * stride_cache_head
    values_of_head = value_cache + kv_head.to(tl.int64) * stride_cache_head
    table = block_tables + sequence.to(tl.int64) * stride_table
    top = tl.full([block_rows], UNSEEN, tl.float32)
    total = tl.zeros([block_rows], tl.float32)
    acc = tl.zeros([block_rows, block_dim], tl.float32)
    if window == 0:
        top, total, acc = _attend_keys(
            q, top, total, acc, first, seen_by_all, positions, keys_of_head, values_of_head, table,
            scale_log2, stride_cache_block, stride_cache_token,
            head_dim, block_dim, block_tokens, block_keys, window, False,
        )  # fmt: skip
    top, total, acc = _attend_keys(
        q, top, total, acc, seen_by_all, end, positions, keys_of_head, values_of_head, table, scale_log2,
        stride_cache_block, stride_cache_token, head_dim, block_dim, block_tokens, block_keys, window, True,
    )  # fmt: skip
    target = out + tokens * stride_out_token + heads * stride_out_head + dims
    tl.store(target, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _load_rows(  # type: ignore[no-untyped-def]
    source, seen, head_dim: tl.constexpr, block_dim: tl.constexpr, masked: tl.constexpr
):
    if masked or head_dim != block_dim:
        return tl.load(source, mask=row_mask(seen, head_dim, block_dim), other=0.0)
    else:  # noqa: RET505, Triton compiles both without it
        return tl.load(source)


@triton.jit  # type: ignore[untyped-decorator]
def _attend_keys(  # type: ignore[no-untyped-def]
    q, top, total, acc, start, end, positions, keys_of_head, values_of_head, table, scale_log2, stride_block,
    stride_token,
    head_dim: tl.constexpr, block_dim: tl.constexpr, block_tokens: tl.constexpr, block_keys: tl.constexpr,
    window: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Adds keys `start … end - 1`, unless `masked` whole tiles, to the running maximum, sum and values."""
    for tile in range(start, end, block_keys):
        keys = tile + tl.arange(0, block_keys)
        if masked:
            blocks = tl.load(table + keys // block_tokens, mask=keys < end, other=0)
        else:
            blocks = tl.load(table + keys // block_tokens)
        offsets = cache_rows(keys, blocks, stride_block, stride_token, block_dim, block_tokens)
        k = _load_rows(keys_of_head + offsets, keys < end, head_dim, block_dim, masked)
        v = _load_rows(values_of_head + offsets, keys < end, head_dim, block_dim, masked)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee")
        if masked:
            seen = keys[None, :] <= positions[:, None]
            if window > 0:
                seen = seen & (keys[None, :] > positions[:, None] - window)
            scores = tl.where(seen, scores, UNSEEN)
        new_top = tl.maximum(top, tl.max(scores, axis=1) * scale_log2)
        weight = tl.exp2(scores * scale_log2 - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weight, axis=1)
        acc = tl.dot(weight.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        top = new_top
    return top, total, acc


def paged_prefill_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    cu_query: Tensor,
    context_lens: Tensor,
    window: int,
    scale: float,
    out: Tensor,
) -> None:
    """The semantics above in plain PyTorch, in float32; on any device, but it waits for the device."""
    bounds = cu_query.tolist()
    for sequence, context_len in enumerate(context_lens.tolist()):
        own = slice(bounds[sequence], bounds[sequence + 1])
        if own.start == own.stop:
            continue
        attended = attend_sequence_reference(
            query[own], key_cache, value_cache, block_tables[sequence], context_len, window, scale
        )
        out[own] = attended.to(out.dtype)
