"""The exchange: real processes on the CPU, kernels in Triton's interpreter, compiled for Hopper."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import triton
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from triton.backends.compiler import GPUTarget

from caraserve_kernels import host_exchange_kernels as module
from caraserve_kernels.host_exchange import (
    MAX_OP_NUMBER,
    MAX_WORKERS,
    OP_WORDS,
    HostExchange,
    add_rows,
    send_rows,
    write_ops,
)
from tests.kernels.exchange_workers import Op, SharedRows, expected_sum, op_words
from tests.kernels.interpreter import run_interpreted

# No answer takes so long, on whatever machine; a test that waits for it has failed.
NEVER_LATE_MS = 60_000.0
ROWS = {"x_ptr", "x_out_ptr", "y_ptr", "result_ptr"}


def test_kernels_in_the_interpreter() -> None:
    run_interpreted("cases_host_exchange.py")


def random_rows(number: int, num_rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Rows of a wider tensor, as those of a part of a batch can be."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(num_rows, width + 3, generator=generator).to(dtype)[:, 3:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_rows_go_to_the_workers_and_come_back(dtype: torch.dtype) -> None:
    ops = [Op(number, 1 + number % 13, 24, 40 if number % 2 else 17) for number in range(1, 101)]
    shared = SharedRows(13 * 40, dtype)
    with shared.workers([0, 5, MAX_WORKERS - 1], ops) as workers:
        for op in ops:
            x = random_rows(op.number, op.num_rows, op.in_width, dtype)
            y = random_rows(-op.number, op.num_rows, op.out_width, dtype)
            expected = expected_sum(x, y)
            told = op_words(op.number, op.num_rows, first_number=1, workers=workers, late_ms=NEVER_LATE_MS)
            send_rows(x, shared.exchange, told)
            add_rows(y, shared.exchange, told)
            assert torch.equal(y, expected), op
    assert shared.exchange.failed.tolist() == [0]


def test_a_late_worker_fails_its_step_and_no_other() -> None:
    silent = frozenset({1})
    # Steps of two ops; in the first the second worker does not answer.
    ops = [Op(1, 4, 8, 8, silent), Op(2, 4, 8, 8, silent), Op(3, 4, 8, 8), Op(4, 4, 8, 8)]
    shared = SharedRows(32, torch.float32)
    sums = []
    with shared.workers([0, 1], ops) as workers:
        for op in ops:
            first_number = 1 if op.number <= 2 else 3
            y = torch.zeros(4, 8)
            late_ms = 20.0 if op.number == 1 else NEVER_LATE_MS
            told = op_words(op.number, 4, first_number=first_number, workers=workers, late_ms=late_ms)
            send_rows(torch.full((4, 8), float(op.number)), shared.exchange, told)
            add_rows(y, shared.exchange, told)
            sums.append(sorted(set(y.flatten().tolist())))
    assert sums == [[0.0], [0.0], [3.0], [4.0]]
    assert shared.exchange.failed.tolist() == [1], "an op of a failed step is not waited for"


def test_only_the_workers_of_the_op_are_waited_for() -> None:
    shared = SharedRows(32, torch.float32)
    shared.exchange.result.fill_(1)
    shared.exchange.done[7], shared.exchange.done[9] = 5, 6
    y = torch.zeros(4, 8)
    add_rows(y, shared.exchange, op_words(5, 4, workers=1 << 7 | 1 << 9, late_ms=NEVER_LATE_MS))
    assert (y == 1).all()
    add_rows(y, shared.exchange, op_words(5, 4, workers=1 << 7 | 1 << 8, late_ms=1.0))
    assert (y == 1).all()
    assert shared.exchange.failed.tolist() == [5]


def test_nothing_is_added_before_the_worker_has_answered() -> None:
    shared = SharedRows(32, torch.float32)
    shared.exchange.result.fill_(1)
    y = torch.zeros(4, 8)
    with shared.workers([0], [Op(1, 4, 8, 8)]) as workers:
        # Nothing was sent: the worker waits too.
        add_rows(y, shared.exchange, op_words(1, 4, workers=workers, late_ms=30.0))
    assert shared.exchange.failed.tolist() == [1], "it was waited for until it was late"
    assert (y == 0).all()


def test_the_sum_is_rounded_once() -> None:
    shared = SharedRows(16, torch.float32)
    shared.exchange.result.fill_(2**-8 + 2**-18)
    shared.exchange.done[0] = 1
    y = torch.ones(2, 8, dtype=torch.bfloat16)
    add_rows(y, shared.exchange, op_words(1, 2, late_ms=NEVER_LATE_MS))
    assert (y == 1 + 2**-7).all()


def test_rows_beyond_those_of_the_op_stay_where_they_are() -> None:
    """A batch is padded, and its other tokens are not assisted."""
    shared = SharedRows(64, torch.float32)
    shared.exchange.x.fill_(-1)
    shared.exchange.result.fill_(1)
    shared.exchange.done[0] = 1
    told, y = op_words(1, 3, late_ms=NEVER_LATE_MS), torch.zeros(8, 8)
    send_rows(torch.ones(8, 8), shared.exchange, told)
    add_rows(y, shared.exchange, told)
    assert shared.exchange.x.view(8, 8).sum(dim=1).tolist() == [8.0] * 3 + [-8.0] * 5
    assert y.sum(dim=1).tolist() == [8.0] * 3 + [0.0] * 5


def test_an_op_without_a_number_is_none() -> None:
    shared = SharedRows(64, torch.float32)
    shared.exchange.result.fill_(1)
    none, y = torch.zeros(OP_WORDS, dtype=torch.int32), torch.zeros(8, 8)
    send_rows(torch.ones(8, 8), shared.exchange, none)
    add_rows(y, shared.exchange, none)
    assert (y == 0).all()
    assert shared.exchange.sent.tolist() + shared.exchange.failed.tolist() == [0, 0]


def test_what_does_not_fit_is_refused() -> None:
    exchange, told = SharedRows(32, torch.float32).exchange, op_words(1, 4)
    with pytest.raises(ValueError, match="room for 32 elements"):
        send_rows(torch.zeros(5, 8), exchange, told)
    with pytest.raises(ValueError, match="room for 32 elements"):
        add_rows(torch.zeros(5, 8), exchange, told)
    with pytest.raises(ValueError, match="side by side"):
        send_rows(torch.zeros(8, 4).T, exchange, told)
    with pytest.raises(ValueError, match=r"float16.*float32"):
        send_rows(torch.zeros(4, 8, dtype=torch.float16), exchange, told)
    for other in (told[:6], told.long(), told.repeat_interleave(2)[::2]):
        with pytest.raises(ValueError, match="an op is int32"):
            send_rows(torch.zeros(4, 8), exchange, other)
        with pytest.raises(ValueError, match="an op is int32"):
            add_rows(torch.zeros(4, 8), exchange, other)
    assert exchange.sent.tolist() == [0]


@pytest.mark.parametrize(
    ("num_ops", "num_rows", "first_number", "workers", "late_ms", "message"),
    [
        (1, 0, 5, 1, 20.0, "0 rows"),
        (1, 4, 0, 1, 20.0, "op number"),
        (1, 4, -1, 1, 20.0, "op number"),
        (1, 4, MAX_OP_NUMBER + 1, 1, 20.0, "op number"),
        (2, 4, MAX_OP_NUMBER, 1, 20.0, "op number"),
        (1, 4, 5, 0, 20.0, "mask"),
        (1, 4, 5, 1 << MAX_WORKERS, 20.0, "mask"),
        (1, 4, 5, 1, 0.0, "late_ms"),
        (1, 4, 5, 1, float("inf"), "late_ms"),
        (1, 4, 5, 1, float("nan"), "late_ms"),
    ],
)
def test_what_would_never_end_is_refused(
    num_ops: int, num_rows: int, first_number: int, workers: int, late_ms: float, message: str
) -> None:
    words = np.zeros((2, OP_WORDS), np.int32)
    with pytest.raises(ValueError, match=message):
        write_ops(words, range(num_ops), num_rows, first_number, workers, late_ms)
    assert not words.any()


@given(workers=st.integers(1, (1 << MAX_WORKERS) - 1), num_ops=st.integers(1, 5))
def test_ops_are_written_where_they_belong(workers: int, num_ops: int) -> None:
    words = np.zeros((2 * num_ops, OP_WORDS), np.int32)
    write_ops(words, range(1, 2 * num_ops, 2), 7, 30, workers, 1.5)
    assert not words[::2].any()
    numbers, num_rows, first_numbers, low, high, late_us = words[1::2, :6].T.tolist()
    assert numbers == list(range(30, 30 + num_ops))
    assert num_rows == [7] * num_ops
    assert first_numbers == [30] * num_ops
    assert late_us == [1500] * num_ops
    assert {(h & 0xFFFFFFFF) << 32 | (lo & 0xFFFFFFFF) for lo, h in zip(low, high, strict=True)} == {workers}


def test_an_exchange_of_other_words_is_refused() -> None:
    flat, word = torch.zeros(8), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match="done must be int32"):
        HostExchange(flat, flat, word, word, word)
    with pytest.raises(ValueError, match="x must be flat"):
        HostExchange(flat.view(2, 4), flat, word, torch.zeros(MAX_WORKERS, dtype=torch.int32), word)


def compile_for_hopper(
    kernel: Any, dtype: str, aligned_width: bool = True, num_warps: int = module._NUM_WARPS
) -> str:
    """The PTX of a kernel for rows of `dtype`, at real sizes: multiples of 16 where the launcher looks."""
    constants = {"columns": module._MAX_COLUMNS} if "columns" in kernel.arg_names else {}
    types = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr")
    types |= {name: dtype if name in ROWS else "*i32" for name in types if name.endswith("_ptr")}
    free = set() if aligned_width else {"width", "x_stride", "y_stride"}
    aligned = [index for index, name in enumerate(types) if name not in free and types[name] != "constexpr"]
    attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
    source = triton.compiler.ASTSource(kernel, types, constants, attributes)
    options = {"num_warps": num_warps}
    return str(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"])


@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
def test_send_compiled_for_hopper_raises_the_flag_after_all_stores(dtype: str) -> None:
    ptx = compile_for_hopper(module._send_kernel, dtype)
    counted = re.search(r"atom\.global\.(sys\.acq_rel|acq_rel\.sys)\.add", ptx)
    assert counted is not None
    last_store = ptx.rindex("st.global.v4", 0, counted.start())
    assert last_store < ptx.index("bar.sync", last_store) < counted.start()
    assert counted.start() < ptx.index("st.release.sys.global")
    assert "griddepcontrol" not in ptx


def test_wait_compiled_for_hopper_is_one_warp_that_polls_past_the_caches() -> None:
    ptx = compile_for_hopper(module._wait_kernel, "*i32", num_warps=1)
    assert ".reqntid 32" in ptx
    loop = ptx[ptx.index("POLL:") : ptx.index("bra POLL")]
    assert loop.count("ld.volatile.global.b32") == 3
    assert "%globaltimer" in loop
    assert "nanosleep" in loop
    # Then the fence, and what the adding kernel goes by.
    fence = ptx.index("fence.acq_rel.sys", ptx.index("bra POLL"))
    assert fence < ptx.index("st.global.b32", fence)
    assert "griddepcontrol" not in ptx


@pytest.mark.parametrize("dtype", ["*bf16", "*fp16", "*fp32"])
def test_add_compiled_for_hopper_reads_rows_past_the_caches(dtype: str) -> None:
    """16 bytes at a time; after the kernel that waits has ended."""
    ptx = compile_for_hopper(module._add_kernel, dtype)
    assert ptx.index("ld.volatile.global.v4") < ptx.index("st.global.v4")
    assert "griddepcontrol" not in ptx


def test_widths_that_no_vector_divides_compile_too() -> None:
    assert "ld.volatile.global.b16" in compile_for_hopper(module._add_kernel, "*bf16", aligned_width=False)
    assert "st.global.b16" in compile_for_hopper(module._send_kernel, "*bf16", aligned_width=False)
