"""The Triton kernel of `paged_decode`, whose module says what it computes.

It starts before the kernel in front of it has ended (programmatic dependent launch), asks for its first keys
and values to be brought to the L2 cache, and only then waits for the queries and the last token's key. The
lengths and the tables are read before the wait: what writes them takes no part in this (`host_rows`), and is
waited for by itself.

Source: FlashDecoding (Dao et al. 2023).
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from caraserve_kernels.paged_attention import UNSEEN, cache_rows, row_mask


@triton.jit(do_not_specialize=["num_whole", "num_splits"])  # type: ignore[untyped-decorator]
def paged_decode_kernel(  # type: ignore[no-untyped-def]
    query, key_cache, value_cache, block_tables, context_lens, out, partial, stats, arrivals, scale_log2,
    num_whole, num_splits, stride_query_sequence, stride_query_head, stride_out_sequence, stride_out_head,
    stride_cache_head, stride_cache_block, stride_cache_token, stride_table,
    num_heads: tl.constexpr, num_kv_heads: tl.constexpr, group_rows: tl.constexpr, head_dim: tl.constexpr,
    block_dim: tl.constexpr, block_tokens: tl.constexpr, block_keys: tl.constexpr, window: tl.constexpr,
    loop_stages: tl.constexpr, max_splits: tl.constexpr, alone: tl.constexpr, overlap: tl.constexpr,
    ahead_keys: tl.constexpr,
):  # fmt: skip
    """One program: for the heads of one kv head, a whole sequence or, after the first `num_whole`, one of
    `num_splits` of its parts. `alone` if none has parts."""
    if overlap:
        gdc_launch_dependents()
    group: tl.constexpr = num_heads // num_kv_heads
    kv_head = tl.program_id(0)
    sequence = tl.program_id(1)
    split = 0
    late = sequence - num_whole  # of those in parts, which one; negative of a whole one
    if alone:
        num_splits = 1
    elif late >= 0:
        split = late % num_splits
        late = late // num_splits
        sequence = num_whole + late
    else:
        num_splits = 1
    rows = tl.arange(0, group_rows)
    heads = kv_head * group + rows
    dims = tl.arange(0, block_dim)[None, :]
    mask = row_mask(rows < group, head_dim, block_dim)
    target = out + sequence.to(tl.int64) * stride_out_sequence + heads[:, None] * stride_out_head + dims
    context_len = tl.load(context_lens + sequence)
    first = 0
    if window > 0:
        first = tl.maximum(context_len - window, 0)
    num_keys = context_len - first
    split_keys = tl.cdiv(tl.cdiv(num_keys, num_splits), block_tokens) * block_tokens
    start = first + split * split_keys
    end = tl.minimum(start + split_keys, context_len)
    if start >= end:
        if overlap:
            gdc_wait()
        if (context_len <= 0) & (split == 0):
            tl.store(target, tl.zeros([group_rows, block_dim], out.dtype.element_ty), mask=mask)
        return

    head_offset = kv_head.to(tl.int64) * stride_cache_head
    table = block_tables + sequence.to(tl.int64) * stride_table
    if overlap:
        if ahead_keys > 0:
            _ask_ahead(
                key_cache + head_offset, value_cache + head_offset, table, start, end, stride_cache_block,
                stride_cache_token, head_dim, block_tokens, ahead_keys,
            )  # fmt: skip
        gdc_wait()
    source = query + sequence.to(tl.int64) * stride_query_sequence + heads[:, None] * stride_query_head + dims
    q = tl.load(source, mask=mask, other=0.0)
    if group_rows == 1:
        top, total, acc = _attend_single(
            q, key_cache + head_offset, value_cache + head_offset, table, start, end, scale_log2,
            stride_cache_block, stride_cache_token, head_dim, block_dim, block_tokens, block_keys,
            loop_stages,
        )  # fmt: skip
    else:
        top, total, acc = _attend_group(
            q, key_cache + head_offset, value_cache + head_offset, table, start, end, scale_log2,
            stride_cache_block, stride_cache_token, head_dim, block_dim, block_tokens, block_keys,
        )  # fmt: skip

    if alone:
        tl.store(target, (acc / total[:, None]).to(out.dtype.element_ty), mask=mask)
    else:
        first_row = (late * num_heads + heads) * num_splits
        arrival = arrivals + late * num_kv_heads + kv_head
        used_splits = tl.cdiv(num_keys, split_keys)
        _share(top, total, acc, partial, stats, arrival, first_row, split, used_splits, target, mask,
               group, group_rows, block_dim, max_splits)  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _ask_ahead(  # type: ignore[no-untyped-def]
    keys_of_head, values_of_head, table, start, end, stride_block, stride_token,
    head_dim: tl.constexpr, block_tokens: tl.constexpr, ahead_keys: tl.constexpr,
):  # fmt: skip
    """Ask for the first `ahead_keys` keys and values to be brought to the L2 cache, a row a request."""
    row_bytes: tl.constexpr = head_dim * (keys_of_head.dtype.element_ty.primitive_bitwidth // 8)
    num_rows: tl.constexpr = 2 * ahead_keys
    rows = tl.arange(0, num_rows)
    keys = tl.minimum(start + rows // 2, end - 1)
    blocks = tl.load(table + keys // block_tokens).to(tl.int64)
    offsets = blocks * stride_block + (keys % block_tokens) * stride_token
    pointers = tl.where(rows % 2 == 0, keys_of_head + offsets, values_of_head + offsets)
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0;",
        "=r,l,r",
        [pointers.to(tl.int64), tl.full(pointers.shape, row_bytes, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _attend_single(  # type: ignore[no-untyped-def]
    q, keys_of_head, values_of_head, table, start, end, scale_log2, stride_block, stride_token,
    head_dim: tl.constexpr, block_dim: tl.constexpr, block_tokens: tl.constexpr, block_keys: tl.constexpr,
    loop_stages: tl.constexpr,
):  # fmt: skip
    """Keys `start … end - 1` for one query [1, block_dim]: maximum [1], sum [1], weighted values.

    Each row of a tile keeps a softmax of its own over every `block_keys`-th key, merged at the end: nothing
    in the loop crosses a row, hence no warp waits for another. The blocks of the next tile are looked up
    while this tile's keys arrive.
    """
    q = q.to(tl.float32) * scale_log2
    rows = tl.arange(0, block_keys)
    top = tl.full([block_keys], UNSEEN, tl.float32)
    total = tl.zeros([block_keys], tl.float32)
    acc = tl.zeros([block_keys, block_dim], tl.float32)
    blocks = tl.load(table + (start + rows) // block_tokens, mask=start + rows < end, other=0)
    for tile in tl.range(start, end, block_keys, num_stages=loop_stages):
        keys = tile + rows
        seen = keys < end
        mask = row_mask(seen, head_dim, block_dim)
        offsets = cache_rows(keys, blocks, stride_block, stride_token, block_dim, block_tokens)
        k = tl.load(keys_of_head + offsets, mask=mask, other=0.0)
        v = tl.load(values_of_head + offsets, mask=mask, other=0.0)
        keys += block_keys
        blocks = tl.load(table + keys // block_tokens, mask=keys < end, other=0)
        scores = tl.where(seen, tl.sum(k.to(tl.float32) * q, axis=1), UNSEEN)
        new_top = tl.maximum(top, scores)
        fade = tl.exp2(top - new_top)
        weight = tl.exp2(scores - new_top)
        total = total * fade + weight
        acc = acc * fade[:, None] + weight[:, None] * v.to(tl.float32)
        top = new_top
    best = tl.max(top, axis=0, keep_dims=True)
    weight = tl.exp2(top - best)
    total = tl.sum(total * weight, axis=0, keep_dims=True)
    return best, total, tl.sum(acc * weight[:, None], axis=0, keep_dims=True)


@triton.jit  # type: ignore[untyped-decorator]
def _attend_group(  # type: ignore[no-untyped-def]
    q, keys_of_head, values_of_head, table, start, end, scale_log2, stride_block, stride_token,
    head_dim: tl.constexpr, block_dim: tl.constexpr, block_tokens: tl.constexpr, block_keys: tl.constexpr,
):  # fmt: skip
    """Keys `start … end - 1` for the queries [rows, block_dim] of a group, each key read once for all."""
    group_rows: tl.constexpr = q.shape[0]
    top = tl.full([group_rows], UNSEEN, tl.float32)
    total = tl.zeros([group_rows], tl.float32)
    acc = tl.zeros([group_rows, block_dim], tl.float32)
    for tile in range(start, end, block_keys):
        keys = tile + tl.arange(0, block_keys)
        seen = keys < end
        mask = row_mask(seen, head_dim, block_dim)
        blocks = tl.load(table + keys // block_tokens, mask=seen, other=0)
        offsets = cache_rows(keys, blocks, stride_block, stride_token, block_dim, block_tokens)
        k = tl.load(keys_of_head + offsets, mask=mask, other=0.0)
        v = tl.load(values_of_head + offsets, mask=mask, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
        scores = tl.where(seen[None, :], scores, UNSEEN)
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        fade = tl.exp2(top - new_top)
        weight = tl.exp2(scores - new_top[:, None])
        total = total * fade + tl.sum(weight, axis=1)
        acc = tl.dot(weight.to(v.dtype), v, acc * fade[:, None], input_precision="ieee")
        top = new_top
    return top, total, acc


@triton.jit  # type: ignore[untyped-decorator]
def _share(  # type: ignore[no-untyped-def]
    top, total, acc, partial, stats, arrival, first_row, split, used_splits, target, mask,
    group: tl.constexpr, group_rows: tl.constexpr, block_dim: tl.constexpr, max_splits: tl.constexpr,
):  # fmt: skip
    """Leaves one split's results for the others; the last of `used_splits` to come here merges them all."""
    if used_splits == 1:
        tl.store(target, (acc / total[:, None]).to(target.dtype.element_ty), mask=mask)
    else:
        real = tl.arange(0, group_rows) < group
        row = first_row + split
        tl.store(stats + row * 2, top, mask=real)
        tl.store(stats + row * 2 + 1, total, mask=real)
        tl.store(partial + row[:, None] * block_dim + tl.arange(0, block_dim)[None, :], acc, mask=mask)
        # All threads' stores come before the one thread's atomic, which publishes them to the device.
        tl.debug_barrier()
        if tl.atomic_add(arrival, 1, sem="acq_rel") == used_splits - 1:
            tl.store(arrival, 0)
            merged = _merge(
                partial, stats, first_row, used_splits, mask, group, group_rows, block_dim, max_splits
            )
            tl.store(target, merged.to(target.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _merge(  # type: ignore[no-untyped-def]
    partial, stats, first_row, used_splits, mask,
    group: tl.constexpr, group_rows: tl.constexpr, block_dim: tl.constexpr, max_splits: tl.constexpr,
):  # fmt: skip
    """[group_rows, block_dim] from the splits' partial results, past the first-level cache, which other
    multiprocessors' stores do not reach."""
    splits = tl.arange(0, max_splits)[None, :]
    real = tl.arange(0, group_rows) < group
    seen = real[:, None] & (splits < used_splits)
    index = (first_row[:, None] + splits) * 2
    top = tl.load(stats + index, mask=seen, other=UNSEEN, cache_modifier=".cg")
    best = tl.max(top, axis=1)
    sums = tl.load(stats + index + 1, mask=seen, other=0.0, cache_modifier=".cg")
    total = tl.sum(sums * tl.exp2(top - best[:, None]), axis=1)
    acc = tl.zeros([group_rows, block_dim], tl.float32)
    for split in tl.range(0, used_splits, loop_unroll_factor=4):
        row = first_row + split
        weight = tl.exp2(tl.load(stats + row * 2, mask=real, other=UNSEEN, cache_modifier=".cg") - best)
        source = partial + row[:, None] * block_dim + tl.arange(0, block_dim)[None, :]
        acc += weight[:, None] * tl.load(source, mask=mask, other=0.0, cache_modifier=".cg")
    return acc / tl.where(real, total, 1.0)[:, None]
