"""The Triton kernels of `lora_pool`: what they compute and on what is written there.

Both run a fixed number of programs, each of which takes every so-manieth item of the step's list. `OVERLAP`:
the kernel may start before the one in front of it has ended. Until that has ended it only reads what is not
written by kernels (work, table, pool): it finds its first item and asks for its weights to be brought to the
L2 cache. Every program waits, also one without items, so that a kernel that has ended means that all before
it have.
"""
# Compile-time constants are written in capitals, as in Triton's own kernels.
# ruff: noqa: N803, N806
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from caraserve_kernels import lora_layout, lora_work

_A_OFFSET = tl.constexpr(lora_layout.A_OFFSET)
_FIRST_MODULE = tl.constexpr(lora_layout.FIRST_MODULE)
_MODULE_FIELDS = tl.constexpr(lora_layout.MODULE_FIELDS)
_MODULE_RANK = tl.constexpr(lora_layout.MODULE_RANK)
_MODULE_ROW = tl.constexpr(lora_layout.MODULE_ROW)
_MODULE_B_OFFSET = tl.constexpr(lora_layout.MODULE_B_OFFSET)
_MODULE_BIAS_OFFSET = tl.constexpr(lora_layout.MODULE_BIAS_OFFSET)
_RANK_LIMIT = tl.constexpr(lora_work.RANK_LIMIT)
_TOKEN_LIST = tl.constexpr(lora_work.TOKEN_LIST)
_SHRINK_TILE_FIELDS = tl.constexpr(lora_work.SHRINK_TILE_FIELDS)
_TILE_SLOT = tl.constexpr(lora_work.TILE_SLOT)
_TILE_ROW = tl.constexpr(lora_work.TILE_ROW)
_TILE_NUM_ROWS = tl.constexpr(lora_work.TILE_NUM_ROWS)
_TILE_TOKEN = tl.constexpr(lora_work.TILE_TOKEN)
_TILE_NUM_TOKENS = tl.constexpr(lora_work.TILE_NUM_TOKENS)
_TOKEN_TILE_FIELDS = tl.constexpr(lora_work.TOKEN_TILE_FIELDS)
_TOKEN_TILE_SLOT = tl.constexpr(lora_work.TOKEN_TILE_SLOT)
_TOKEN_TILE_TOKEN = tl.constexpr(lora_work.TOKEN_TILE_TOKEN)
_TOKEN_TILE_NUM_TOKENS = tl.constexpr(lora_work.TOKEN_TILE_NUM_TOKENS)
_PIECE_ALIGN = tl.constexpr(lora_layout.PIECE_ALIGN_ELEMENTS)


@triton.jit(do_not_specialize=["table_field"])
def shrink_kernel(
    x_ptr, h_ptr, pool_ptr, table_ptr, work_ptr, table_field, x_stride,
    LIST: tl.constexpr, SLOT_STRIDE: tl.constexpr,
    H_SPLIT_STRIDE: tl.constexpr, H_STRIDE: tl.constexpr, H_MODULE_STRIDE: tl.constexpr,
    IN_WIDTH: tl.constexpr, NUM_MODULES: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    # Not tl.cdiv: up to Triton 3.6 its result is no compile-time constant.
    STEPS: tl.constexpr = (IN_WIDTH + BLOCK_K * SPLIT_K - 1) // (BLOCK_K * SPLIT_K)
    first_tile_ptr = work_ptr + tl.load(work_ptr + LIST)
    num_items = tl.load(work_ptr + LIST + 1) * SPLIT_K
    table_ptr += table_field
    if OVERLAP:
        item = tl.program_id(0)
        if item < num_items:
            tile_ptr = first_tile_ptr + item // SPLIT_K * _SHRINK_TILE_FIELDS
            first_row, num_rows, a_ptr, _ = _shrink_rows(
                tile_ptr, pool_ptr, table_ptr, SLOT_STRIDE, NUM_MODULES
            )
            first_k = item % SPLIT_K * STEPS * BLOCK_K
            _fetch_ahead(a_ptr, first_row, num_rows, IN_WIDTH, first_k, IN_WIDTH, BLOCK_ROWS, BLOCK_K)
        gdc_wait()
        # Not before x is there: a product of the same x runs beside this kernel and does not wait for it.
        gdc_launch_dependents()
    for item in range(tl.program_id(0), num_items, tl.num_programs(0)):
        tile_ptr = first_tile_ptr + item // SPLIT_K * _SHRINK_TILE_FIELDS
        split = item % SPLIT_K
        first_row, num_rows, a_ptr, entry_ptr = _shrink_rows(
            tile_ptr, pool_ptr, table_ptr, SLOT_STRIDE, NUM_MODULES
        )
        if first_row < num_rows:
            rows = first_row + tl.arange(0, BLOCK_ROWS)
            row_mask = rows < num_rows
            a_ptrs = a_ptr + rows * IN_WIDTH
            first_token = tl.load(tile_ptr + _TILE_TOKEN).to(tl.int64)
            first_k = split * STEPS * BLOCK_K
            x_ptrs = x_ptr + first_token * x_stride
            h_ptrs = h_ptr + split * H_SPLIT_STRIDE + first_token * H_STRIDE
            h_ptrs += _h_columns(rows, entry_ptr, H_MODULE_STRIDE, NUM_MODULES)
            if BLOCK_TOKENS == 1:
                h = _shrink_token(x_ptrs, a_ptrs, row_mask, first_k, IN_WIDTH, BLOCK_K, STEPS, STAGES)
                tl.store(h_ptrs, h, row_mask)
            else:
                tokens = tl.arange(0, BLOCK_TOKENS)
                token_mask = tokens < tl.load(tile_ptr + _TILE_NUM_TOKENS)
                x_ptrs += tokens * x_stride
                h = _shrink_tokens(
                    x_ptrs, token_mask, a_ptrs, row_mask, first_k, IN_WIDTH, BLOCK_K, STEPS, STAGES
                )
                h_ptrs = h_ptrs[None, :] + tokens[:, None] * H_STRIDE
                tl.store(h_ptrs, h, token_mask[:, None] & row_mask[None, :])


@triton.jit
def _shrink_rows(tile_ptr, pool_ptr, table_ptr, SLOT_STRIDE: tl.constexpr, NUM_MODULES: tl.constexpr):
    """A tile's first row, where its rows end (both counted in the stack), where the stack begins, and the
    table entry that says so."""
    entry_ptr = table_ptr + tl.load(tile_ptr + _TILE_SLOT).to(tl.int64) * SLOT_STRIDE
    a_ptr = pool_ptr + tl.multiple_of(tl.load(entry_ptr + _A_OFFSET), _PIECE_ALIGN)
    # The tile was made for the adapter's tallest layer: this one may have fewer rows, or none.
    num_rows = 0
    for module in tl.static_range(NUM_MODULES):
        num_rows += tl.load(entry_ptr + _FIRST_MODULE + module * _MODULE_FIELDS + _MODULE_RANK).to(tl.int32)
    first_row = tl.load(tile_ptr + _TILE_ROW)
    num_rows = tl.minimum(num_rows, first_row + tl.load(tile_ptr + _TILE_NUM_ROWS))
    return first_row, num_rows, a_ptr, entry_ptr


@triton.jit
def _h_columns(rows, entry_ptr, H_MODULE_STRIDE: tl.constexpr, NUM_MODULES: tl.constexpr):
    """Where rows of the stack are in h, in which each module has its own, aligned columns."""
    columns = rows
    for module in tl.static_range(1, NUM_MODULES):
        first_row = tl.load(entry_ptr + _FIRST_MODULE + module * _MODULE_FIELDS + _MODULE_ROW).to(tl.int32)
        columns = tl.where(rows >= first_row, rows - first_row + module * H_MODULE_STRIDE, columns)
    return columns


@triton.jit
def _shrink_token(
    x_ptr, a_ptrs, row_mask, first_k,
    IN_WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One token times some rows: [rows]."""
    products = tl.zeros([row_mask.shape[0], BLOCK_K], tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        k = first_k + step * BLOCK_K + tl.arange(0, BLOCK_K)
        k_mask = k < IN_WIDTH
        a = tl.load(a_ptrs[:, None] + k[None, :], row_mask[:, None] & k_mask[None, :], other=0.0)
        x = tl.load(x_ptr + k, k_mask, other=0.0)
        products += a.to(tl.float32) * x.to(tl.float32)[None, :]
    return tl.sum(products, axis=1)


@triton.jit
def _shrink_tokens(
    x_ptrs, token_mask, a_ptrs, row_mask, first_k,
    IN_WIDTH: tl.constexpr, BLOCK_K: tl.constexpr, STEPS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Some tokens times some rows: [tokens, rows]."""
    h = tl.zeros([token_mask.shape[0], row_mask.shape[0]], tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        k = first_k + step * BLOCK_K + tl.arange(0, BLOCK_K)
        k_mask = k < IN_WIDTH
        x = tl.load(x_ptrs[:, None] + k[None, :], token_mask[:, None] & k_mask[None, :], other=0.0)
        a = tl.load(a_ptrs[None, :] + k[:, None], row_mask[None, :] & k_mask[:, None], other=0.0)
        h = tl.dot(x, a, h, input_precision="ieee")
    return h


@triton.jit(do_not_specialize=["table_field"])
def expand_kernel(
    y_ptr, h_ptr, pool_ptr, table_ptr, work_ptr, table_field, y_stride,
    SLOT_STRIDE: tl.constexpr,
    H_SPLIT_STRIDE: tl.constexpr, H_STRIDE: tl.constexpr, H_MODULE_STRIDE: tl.constexpr,
    WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, WIDTH2: tl.constexpr, WIDTH_ALIGN: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_COLS: tl.constexpr, BLOCK_RANK: tl.constexpr, SPLIT_K: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    TILES01: tl.constexpr = (WIDTH0 + BLOCK_COLS - 1) // BLOCK_COLS + (WIDTH1 + BLOCK_COLS - 1) // BLOCK_COLS
    TILES: tl.constexpr = TILES01 + (WIDTH2 + BLOCK_COLS - 1) // BLOCK_COLS
    first_tile_ptr = work_ptr + tl.load(work_ptr + _TOKEN_LIST)
    num_items = tl.load(work_ptr + _TOKEN_LIST + 1) * TILES
    rank_limit = tl.load(work_ptr + _RANK_LIMIT)
    table_ptr += table_field
    if OVERLAP:
        gdc_launch_dependents()
        item = tl.program_id(0)
        if item < num_items:
            tile_ptr = first_tile_ptr + item // TILES * _TOKEN_TILE_FIELDS
            module, width, _, column = _column_tile(
                item % TILES, WIDTH0, WIDTH1, WIDTH2, WIDTH_ALIGN, BLOCK_COLS
            )
            module_ptr = _module_entry(tile_ptr, module, table_ptr, SLOT_STRIDE)
            lora_rank = tl.minimum(tl.load(module_ptr + _MODULE_RANK).to(tl.int32), rank_limit)
            b_ptr = pool_ptr + tl.load(module_ptr + _MODULE_B_OFFSET)
            _fetch_ahead(b_ptr, 0, lora_rank, width, column, width, BLOCK_RANK, BLOCK_COLS)
        gdc_wait()
    for first_item in range(0, num_items, tl.num_programs(0)):
        # Forth and back: who had the heaviest items has the lightest next.
        is_back = first_item // tl.num_programs(0) % 2 == 1
        item = first_item + tl.where(is_back, tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(0))
        is_item = item < num_items
        item = tl.minimum(item, num_items - 1)
        tile_ptr = first_tile_ptr + item // TILES * _TOKEN_TILE_FIELDS
        module, width, first_column, column = _column_tile(
            item % TILES, WIDTH0, WIDTH1, WIDTH2, WIDTH_ALIGN, BLOCK_COLS
        )
        module_ptr = _module_entry(tile_ptr, module, table_ptr, SLOT_STRIDE)
        lora_rank = tl.minimum(tl.load(module_ptr + _MODULE_RANK).to(tl.int32), rank_limit)
        if is_item & (lora_rank > 0):
            columns = column + tl.arange(0, BLOCK_COLS)
            column_mask = columns < width
            first_token = tl.load(tile_ptr + _TOKEN_TILE_TOKEN).to(tl.int64)
            h_ptrs = h_ptr + first_token * H_STRIDE + module * H_MODULE_STRIDE
            b_ptrs = pool_ptr + tl.multiple_of(tl.load(module_ptr + _MODULE_B_OFFSET), _PIECE_ALIGN) + columns
            bias_offset = tl.load(module_ptr + _MODULE_BIAS_OFFSET)
            bias_mask = columns < tl.where(bias_offset >= 0, width, 0)
            bias = tl.load(pool_ptr + bias_offset + columns, bias_mask, other=0.0).to(tl.float32)
            y_ptrs = y_ptr + first_token * y_stride + first_column + columns
            # y is asked for before the product, not after it.
            if BLOCK_TOKENS == 1:
                y_mask = column_mask
                y = tl.load(y_ptrs, y_mask).to(tl.float32) + bias
                y += _expand_token(
                    h_ptrs, b_ptrs, column_mask, lora_rank, width, H_SPLIT_STRIDE, BLOCK_RANK, SPLIT_K, STAGES
                )
            else:
                tokens = tl.arange(0, BLOCK_TOKENS)
                token_mask = tokens < tl.load(tile_ptr + _TOKEN_TILE_NUM_TOKENS)
                y_ptrs = y_ptrs[None, :] + tokens[:, None] * y_stride
                y_mask = token_mask[:, None] & column_mask[None, :]
                y = tl.load(y_ptrs, y_mask).to(tl.float32) + bias[None, :]
                y += _expand_tokens(
                    h_ptrs + tokens * H_STRIDE, token_mask, b_ptrs, column_mask, lora_rank, width,
                    H_SPLIT_STRIDE, BLOCK_RANK, SPLIT_K, STAGES,
                )  # fmt: skip
            tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), y_mask)


@triton.jit
def _column_tile(
    tile, WIDTH0: tl.constexpr, WIDTH1: tl.constexpr, WIDTH2: tl.constexpr,
    WIDTH_ALIGN: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """A group's column tile, which stays within a module: the module, its width, where its columns begin in
    y, and the tile's first column within the module."""
    TILES0: tl.constexpr = (WIDTH0 + BLOCK_COLS - 1) // BLOCK_COLS
    TILES01: tl.constexpr = TILES0 + (WIDTH1 + BLOCK_COLS - 1) // BLOCK_COLS
    in_later, in_last = tile >= TILES0, tile >= TILES01
    module = tl.where(in_last, 2, tl.where(in_later, 1, 0))
    width = tl.where(in_last, WIDTH2, tl.where(in_later, WIDTH1, WIDTH0))
    first_column = tl.where(in_last, WIDTH0 + WIDTH1, tl.where(in_later, WIDTH0, 0))
    tile -= tl.where(in_last, TILES01, tl.where(in_later, TILES0, 0))
    width, first_column = tl.multiple_of(width, WIDTH_ALIGN), tl.multiple_of(first_column, WIDTH_ALIGN)
    return module, width, first_column, tile * BLOCK_COLS


@triton.jit
def _module_entry(tile_ptr, module, table_ptr, SLOT_STRIDE: tl.constexpr):
    """Where the table describes a module of the adapter of a token tile."""
    entry_ptr = table_ptr + tl.load(tile_ptr + _TOKEN_TILE_SLOT).to(tl.int64) * SLOT_STRIDE
    return entry_ptr + _FIRST_MODULE + module * _MODULE_FIELDS


@triton.jit
def _expand_token(
    h_ptr, b_ptrs, column_mask, lora_rank, width,
    H_SPLIT_STRIDE: tl.constexpr, BLOCK_RANK: tl.constexpr, SPLIT_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One token's h times some columns of B: [columns]."""
    delta = tl.zeros([column_mask.shape[0]], tl.float32)
    for first_row in tl.range(0, lora_rank, BLOCK_RANK, num_stages=STAGES):
        rows = first_row + tl.arange(0, BLOCK_RANK)
        row_mask = rows < lora_rank
        b_mask = row_mask[:, None] & column_mask[None, :]
        b = tl.load(b_ptrs[None, :] + rows[:, None] * width, b_mask, other=0.0)
        h = tl.load(h_ptr + rows, row_mask, other=0.0)
        for split in tl.static_range(1, SPLIT_K):
            h += tl.load(h_ptr + split * H_SPLIT_STRIDE + rows, row_mask, other=0.0)
        # Summed here, and not once at the end: where a thread has all rows of its columns, that costs
        # nothing, and leaves it the registers for taller tiles.
        delta += tl.sum(h[:, None] * b.to(tl.float32), axis=0)
    return delta


@triton.jit
def _expand_tokens(
    h_ptrs, token_mask, b_ptrs, column_mask, lora_rank, width,
    H_SPLIT_STRIDE: tl.constexpr, BLOCK_RANK: tl.constexpr, SPLIT_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Some tokens' h times some columns of B: [tokens, columns]."""
    delta = tl.zeros([token_mask.shape[0], column_mask.shape[0]], tl.float32)
    for first_row in tl.range(0, lora_rank, BLOCK_RANK, num_stages=STAGES):
        rows = first_row + tl.arange(0, BLOCK_RANK)
        row_mask = rows < lora_rank
        # 16 bytes at a time: up to 3 columns of h past the rank are read, and dropped.
        h_mask = token_mask[:, None] & (rows < (lora_rank + 3) // 4 * 4)[None, :]
        h = tl.load(h_ptrs[:, None] + rows[None, :], h_mask, other=0.0)
        for split in tl.static_range(1, SPLIT_K):
            h += tl.load(h_ptrs[:, None] + split * H_SPLIT_STRIDE + rows[None, :], h_mask, other=0.0)
        h = tl.where(row_mask[None, :], h, 0.0)
        b_mask = row_mask[:, None] & column_mask[None, :]
        b = tl.load(b_ptrs[None, :] + rows[:, None] * width, b_mask, other=0.0)
        delta = tl.dot(h.to(b.dtype), b, delta, input_precision="ieee")
    return delta


@triton.jit
def _fetch_ahead(
    ptr, first_row, num_rows, stride, first_column, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Ask for a part of a matrix [num_rows, num_columns] to be brought to the L2 cache."""
    LINE: tl.constexpr = 1024 // ptr.dtype.element_ty.primitive_bitwidth  # elements in 128 bytes
    LINES: tl.constexpr = (COLUMNS + LINE - 1) // LINE
    # What lies outside stands for what is at the edge: all addresses are in the pool.
    rows = tl.maximum(tl.minimum(first_row + tl.arange(0, ROWS), num_rows - 1), 0)
    columns = tl.minimum(first_column + tl.arange(0, LINES) * LINE, num_columns - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.b32 $0, 0;",
        "=r,l",
        [(ptr + rows[:, None] * stride + columns[None, :]).to(tl.int64)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
