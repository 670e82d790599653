"""The kernels of `linear`, which says what they compute."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit  # type: ignore[untyped-decorator]
def _ask_ahead(  # type: ignore[no-untyped-def]
    row_pointers, ahead: tl.constexpr, ahead_chunks: tl.constexpr
):
    """Ask for the first `ahead` elements of each row ([rows, 1] pointers) to be brought to the L2 cache."""
    chunk: tl.constexpr = ahead // ahead_chunks
    element_bytes: tl.constexpr = row_pointers.dtype.element_ty.primitive_bitwidth // 8
    pointers = row_pointers + (tl.arange(0, ahead_chunks) * chunk)[None, :]
    tl.inline_asm_elementwise(
        "cp.async.bulk.prefetch.L2.global [$1], $2; mov.b32 $0, 0;",
        "=r,l,r",
        [pointers.to(tl.int64), tl.full(pointers.shape, chunk * element_bytes, tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit  # type: ignore[untyped-decorator]
def vector_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, out_ptr, width_in, width_out,
    block_rows: tl.constexpr, block_columns: tl.constexpr, loop_stages: tl.constexpr, even: tl.constexpr,
    ahead: tl.constexpr, ahead_chunks: tl.constexpr, overlap: tl.constexpr, beside: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    columns = tl.arange(0, block_columns)
    # Rows past the end read the last row instead, which keeps reads unmasked; the store drops them.
    row_pointers = weight_ptr + tl.minimum(rows, width_out - 1).to(tl.int64)[:, None] * width_in
    if overlap:
        if ahead > 0:
            _ask_ahead(row_pointers, ahead, ahead_chunks)
        gdc_launch_dependents()
        if not beside:
            gdc_wait()
    # One sum per column until the end: a sum over threads in every step would cost more than the reads.
    sums = tl.zeros([block_rows, block_columns], tl.float32)
    for start in tl.range(0, width_in, block_columns, num_stages=loop_stages):
        at = start + columns
        inside = (at < width_in) | even
        w = tl.load(
            row_pointers + at[None, :], mask=inside[None, :], other=0.0, eviction_policy="evict_first"
        )
        # Beside another kernel past the L1 cache: x is there, but this kernel has not waited for its writer.
        x = tl.load(x_ptr + at, mask=inside, other=0.0, cache_modifier=".cg" if beside else "")
        sums += w.to(tl.float32) * x.to(tl.float32)[None, :]
    if overlap and beside:
        gdc_wait()
    y = tl.sum(sums, axis=1)
    inside_rows = rows < width_out
    if bias_ptr is not None:
        y += tl.load(bias_ptr + rows, mask=inside_rows, other=0.0).to(tl.float32)
    tl.store(out_ptr + rows, y.to(out_ptr.dtype.element_ty), mask=inside_rows)


# A kernel for each block of tokens, not for each number of them.
@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def tile_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, bias_ptr, out_ptr, parts_ptr, arrivals_ptr, num_tokens, width_in, width_out, x_stride,
    block_tokens: tl.constexpr, block_rows: tl.constexpr, block_columns: tl.constexpr,
    num_splits: tl.constexpr, loop_stages: tl.constexpr, even: tl.constexpr,
    ahead: tl.constexpr, ahead_chunks: tl.constexpr, overlap: tl.constexpr, beside: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * block_rows + tl.arange(0, block_rows)
    columns = tl.arange(0, block_columns)
    tokens = tl.arange(0, block_tokens)
    steps = tl.cdiv(tl.cdiv(width_in, block_columns), num_splits)
    first = tl.program_id(1) * steps * block_columns
    last = tl.minimum(first + steps * block_columns, width_in)
    # Rows past the end read the last row instead, which keeps reads unmasked; the store drops them.
    row_pointers = weight_ptr + tl.minimum(rows, width_out - 1).to(tl.int64)[:, None] * width_in
    if overlap:
        if ahead > 0 and first + ahead <= width_in:
            _ask_ahead(row_pointers + first, ahead, ahead_chunks)
        gdc_launch_dependents()
        if not beside:
            gdc_wait()
    inside_tokens = tokens < num_tokens
    token_pointers = x_ptr + tokens.to(tl.int64)[None, :] * x_stride
    sums = tl.zeros([block_rows, block_tokens], tl.float32)
    for start in tl.range(first, last, block_columns, num_stages=loop_stages):
        at = start + columns
        inside = (at < width_in) | even
        w = tl.load(
            row_pointers + at[None, :], mask=inside[None, :], other=0.0, eviction_policy="evict_first"
        )
        x_inside = inside[:, None] & inside_tokens[None, :]
        x = tl.load(
            token_pointers + at[:, None], mask=x_inside, other=0.0, cache_modifier=".cg" if beside else ""
        )
        sums = tl.dot(w, x, sums, input_precision="ieee")
    if overlap and beside:
        gdc_wait()
    _finish(sums, bias_ptr, out_ptr, parts_ptr, arrivals_ptr, rows, tokens, num_tokens, width_out, num_splits)


@triton.jit  # type: ignore[untyped-decorator]
def _finish(  # type: ignore[no-untyped-def]
    sums, bias_ptr, out_ptr, parts_ptr, arrivals_ptr, rows, tokens, num_tokens, width_out,
    num_splits: tl.constexpr,
):  # fmt: skip
    """Store a program's sums, [rows, tokens]; of several programs that share rows, the last one stores."""
    if num_splits == 1:
        _store(sums, bias_ptr, out_ptr, rows, tokens, num_tokens, width_out)
    else:
        part_size: tl.constexpr = sums.shape[0] * sums.shape[1]
        split_stride = tl.num_programs(0) * part_size
        in_part = tl.arange(0, sums.shape[0])[:, None] * sums.shape[1] + tokens[None, :]
        first_part = parts_ptr + tl.program_id(0) * part_size + in_part
        tl.store(first_part + tl.program_id(1) * split_stride, sums)
        # One thread raises the counter: the barrier puts the stores of the others before it.
        tl.debug_barrier()
        counter = arrivals_ptr + tl.program_id(0)
        if tl.atomic_add(counter, 1, sem="acq_rel") == num_splits - 1:
            total = tl.zeros(sums.shape, tl.float32)
            for split in tl.static_range(num_splits):
                # Past the L1 cache, which other multiprocessors' stores do not reach.
                total += tl.load(first_part + split * split_stride, cache_modifier=".cg")
            tl.store(counter, 0)
            _store(total, bias_ptr, out_ptr, rows, tokens, num_tokens, width_out)


@triton.jit
def _store(sums, bias_ptr, out_ptr, rows, tokens, num_tokens, width_out):  # type: ignore[no-untyped-def]
    inside_rows = rows < width_out
    if bias_ptr is not None:
        sums += tl.load(bias_ptr + rows, mask=inside_rows, other=0.0).to(tl.float32)[:, None]
    pointers = out_ptr + tokens.to(tl.int64)[None, :] * width_out + rows[:, None]
    inside = inside_rows[:, None] & (tokens < num_tokens)[None, :]
    tl.store(pointers, sums.to(out_ptr.dtype.element_ty), mask=inside)
