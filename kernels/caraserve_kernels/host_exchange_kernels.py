"""The Triton kernels of `host_exchange`: what they do is written there.

What they are told of an op lies in the device's memory (`host_exchange.write_ops`): an op whose number is 0
is none. Both run few programs, because few multiprocessors saturate PCIe, and other streams keep the device.

Order, in the terms of PTX's memory model. `send_rows`: the barrier and the counter's `acq_rel` at system
scope put the stores of all programs before the flag, which is stored with `release.sys`. `add_rows`: the
words are polled with `ld.volatile` (as `relaxed.sys`), a `fence.acq_rel.sys` follows, and the result is read
with `ld.volatile` too, past what a cache may have kept of an earlier op. (Triton takes `.cv` and drops it.)

`add_rows` is two kernels. What waits is one program of one warp, for what it keeps is missed by whoever
computes at the same time: with the 16 programs of 8 warps that add polling themselves, steps that decoded
beside an assisted prompt took 9.0 ms in place of 7.1 (H100, Llama-2-7B's shape, 8 sequences, 3 GB/s), for
products are cut so that each multiprocessor has exactly two of their programs at once. It writes the outcome
to a word in device memory, by which all threads of those that add go: what is read from the host or from a
timer may differ from one thread to the next.
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

# 128 KiB on the way in bfloat16: twice what PCIe 5.0 x16 moves in a microsecond, about the time that a read
# takes. Chosen, not measured.
_MAX_PROGRAMS = 16
_MAX_COLUMNS = 4096
_NUM_WARPS = 8
# Outcomes of waiting, as `_poll` has them; 3 is "failed before".
_READY = tl.constexpr(1)
_LATE = tl.constexpr(2)


def launch_send_rows(x: Tensor, x_out: Tensor, sent: Tensor, op: Tensor) -> None:
    """The op's rows of x [T, in_width] on the device, to x_out in pinned memory; then sent[0] = number."""
    num_rows, width = x.shape
    columns, grid = _cut(num_rows, width)
    _send_kernel[grid](
        *(x, x_out, sent, op, _device_words(x.device), width, x.stride(0)),
        columns=columns,
        num_warps=_NUM_WARPS,
    )


def launch_add_rows(y: Tensor, result: Tensor, done: Tensor, failed: Tensor, op: Tensor) -> None:
    """The op's rows of y [T, out_width] on the device += result, once done[w] >= its number for every worker
    w of its mask."""
    num_rows, width = y.shape
    columns, grid = _cut(num_rows, width)
    words = _device_words(y.device)
    _wait_kernel[(1,)](done, failed, op, words, num_warps=1)
    _add_kernel[grid](y, result, op, words, width, y.stride(0), columns=columns, num_warps=_NUM_WARPS)


def _cut(num_rows: int, width: int) -> tuple[int, tuple[int]]:
    """The columns of a tile, which lies within a row, and the grid."""
    columns = min(_MAX_COLUMNS, int(triton.next_power_of_2(width)))
    return columns, (min(_MAX_PROGRAMS, num_rows * -(-width // columns)),)


@cache
def _device_words(device: torch.device) -> Tensor:
    """Programs that have sent, zero between launches, so that none has to clear it; and the outcome of the
    last wait. Made once."""
    return torch.zeros(2, dtype=torch.int32, device=device)


@triton.jit
def _send_kernel(x_ptr, x_out_ptr, sent_ptr, op_ptr, words_ptr, width, x_stride, columns: tl.constexpr):
    number, num_rows = tl.load(op_ptr), tl.load(op_ptr + 1)
    if number != 0:
        _copy_rows(x_ptr, x_out_ptr, num_rows, width, x_stride, columns)
        # One thread raises the counter: the barrier puts the stores of the others before it.
        tl.debug_barrier()
        if tl.atomic_add(words_ptr, 1, sem="acq_rel", scope="sys") == tl.num_programs(0) - 1:
            tl.store(words_ptr, 0)
            _raise_word(sent_ptr, number)


@triton.jit
def _copy_rows(x_ptr, x_out_ptr, num_rows, width, x_stride, columns: tl.constexpr):
    """Every so-manieth tile of x [rows, width], x_stride apart, to x_out, where rows are side by side."""
    row_tiles = (width + columns - 1) // columns
    for tile in range(tl.program_id(0), num_rows * row_tiles, tl.num_programs(0)):
        row = (tile // row_tiles).to(tl.int64)
        at = tile % row_tiles * columns + tl.arange(0, columns)
        inside = at < width
        tl.store(x_out_ptr + row * width + at, tl.load(x_ptr + row * x_stride + at, inside), inside)


@triton.jit
def _wait_kernel(done_ptr, failed_ptr, op_ptr, words_ptr):
    """Of one warp; the outcome of the op to the second word."""
    number, first_number = tl.load(op_ptr), tl.load(op_ptr + 2)
    low_mask, high_mask, late_us = tl.load(op_ptr + 3), tl.load(op_ptr + 4), tl.load(op_ptr + 5)
    if number != 0:
        outcome = _poll(done_ptr, failed_ptr, number, first_number, low_mask, high_mask, late_us)
        tl.store(words_ptr + 1, outcome)
        if outcome == _LATE:
            _raise_word(failed_ptr, number)


@triton.jit
def _add_kernel(y_ptr, result_ptr, op_ptr, words_ptr, width, y_stride, columns: tl.constexpr):
    number, num_rows = tl.load(op_ptr), tl.load(op_ptr + 1)
    # The word is a former op's where there is none.
    is_ready = (number != 0) & (tl.load(words_ptr + 1) == _READY)
    if is_ready:
        _add_result(y_ptr, result_ptr, num_rows, width, y_stride, columns)


@triton.jit
def _add_result(y_ptr, result_ptr, num_rows, width, y_stride, columns: tl.constexpr):
    """Every so-manieth tile of y [rows, width], y_stride apart, += result, where rows are side by side."""
    row_tiles = (width + columns - 1) // columns
    for tile in range(tl.program_id(0), num_rows * row_tiles, tl.num_programs(0)):
        row = (tile // row_tiles).to(tl.int64)
        at = tile % row_tiles * columns + tl.arange(0, columns)
        inside = at < width
        result = tl.load(result_ptr + row * width + at, inside, volatile=True).to(tl.float32)
        y_ptrs = y_ptr + row * y_stride + at
        y = tl.load(y_ptrs, inside).to(tl.float32) + result
        tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), inside)


@triton.jit
def _poll(done_ptr, failed_ptr, number, first_number, low_mask, high_mask, late_us):
    """Wait: the outcome, the same in all lanes of the one warp.

    Each lane has two workers, so that all words are on the way at once: what takes time is the way to the
    host and back. Between polls it sleeps, for much less than that.
    """
    return tl.inline_asm_elementwise(
        """{
        .reg .pred wants_low, wants_high, missing, failed, late;
        .reg .b32 lane, bit, low, high, failed_number;
        .reg .b64 done, now, deadline;
        mov.u32 lane, %tid.x;
        mov.b32 bit, 1;
        shl.b32 bit, bit, lane;
        and.b32 low, bit, $5;
        setp.ne.b32 wants_low, low, 0;
        and.b32 high, bit, $6;
        setp.ne.b32 wants_high, high, 0;
        mad.wide.u32 done, lane, 4, $1;
        mov.u64 deadline, %globaltimer;
        mad.wide.u32 deadline, $7, 1000, deadline;
        POLL:
        mov.b32 low, $3;
        mov.b32 high, $3;
        ld.volatile.global.b32 failed_number, [$2];
        @wants_low ld.volatile.global.b32 low, [done];
        @wants_high ld.volatile.global.b32 high, [done+128];
        min.s32 low, low, high;
        setp.lt.s32 missing, low, $3;
        setp.ge.s32 failed, failed_number, $4;
        vote.sync.any.pred missing, missing, 0xffffffff;
        vote.sync.any.pred failed, failed, 0xffffffff;
        @failed mov.b32 $0, 3;
        @failed bra ENDED;
        @!missing bra READY;
        mov.u64 now, %globaltimer;
        setp.ge.u64 late, now, deadline;
        vote.sync.any.pred late, late, 0xffffffff;
        @late mov.b32 $0, 2;
        @late bra ENDED;
        nanosleep.u32 200;
        bra POLL;
        READY:
        fence.acq_rel.sys;
        bar.warp.sync 0xffffffff;
        mov.b32 $0, 1;
        ENDED:
        }""",
        "=&r,l,l,r,r,r,r,r",
        [done_ptr.to(tl.int64), failed_ptr.to(tl.int64), number, first_number, low_mask, high_mask, late_us],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _raise_word(word_ptr, number):
    """Store an int32, by one thread, for the host to see after all that this thread has stored or seen."""
    tl.inline_asm_elementwise(
        """{
        .reg .pred first;
        .reg .b32 thread;
        mov.u32 thread, %tid.x;
        setp.eq.u32 first, thread, 0;
        @first st.release.sys.global.b32 [$1], $2;
        mov.b32 $0, 0;
        }""",
        "=r,l,r",
        [word_ptr.to(tl.int64), number],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
