from __future__ import annotations

import gc
import os

import pytest
import torch

from caraserve_cli.adapters.packing import MAX_LORA_RANK
from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_kernels.host_exchange import MAX_WORKERS, add_rows, send_rows
from tests.kernels.exchange_workers import op_words


@pytest.fixture
def memory():
    made = ExchangeMemory.create(5, 33, 65, torch.bfloat16, pinned=False)
    yield made
    made.close()


def test_whoever_attaches_sees_and_is_seen(memory):
    other = ExchangeMemory.attach(os.dup(memory.fd), memory.layout)
    x = torch.randn(5, 33).bfloat16()
    told = op_words(7, 5, workers=1 << (MAX_WORKERS - 1), late_ms=1000)
    send_rows(x, memory.exchange, told)
    assert other.sent[0] == 7
    rows, result = other.rows(5, 33, 65)
    assert torch.equal(rows, x)
    result.fill_(2)
    other.done[MAX_WORKERS - 1] = 7
    y = torch.ones(5, 65)
    add_rows(y, memory.exchange, told)
    assert torch.equal(y, torch.full((5, 65), 3.0))
    memory.exchange.failed.fill_(9)
    assert other.failed[0] == 9
    other.close()


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
def test_workers_see_each_others_lora_rows_and_words(memory, compute_dtype):
    other = ExchangeMemory.attach(os.dup(memory.fd), memory.layout)
    h = torch.randn(5, 70).to(compute_dtype)
    memory.h(5, 70, compute_dtype).copy_(h)
    assert torch.equal(other.h(5, 70, compute_dtype), h)
    for worker in range(MAX_WORKERS):
        memory.shrunk[worker] = worker
    assert list(other.shrunk) == list(range(MAX_WORKERS))
    other.close()


def test_words_x_and_result_do_not_overlap(memory):
    exchange = memory.exchange
    h = memory.h(5, 3 * MAX_LORA_RANK, torch.float32)
    parts = (exchange.sent, exchange.failed, exchange.done, exchange.x, exchange.result, h)
    for value, part in enumerate(parts, start=1):
        part.fill_(value)
    for value, part in enumerate(parts, start=1):
        assert (part == value).all()
    assert list(memory.shrunk) == [0] * MAX_WORKERS
    memory.shrunk[MAX_WORKERS - 1] = 7
    assert (h == len(parts)).all()
    assert len(memory.done) == MAX_WORKERS
    assert memory.sent.tolist() + memory.failed.tolist() == [1, 2]


def test_begins_with_no_op_sent_done_or_failed(memory):
    words = (memory.sent, memory.failed, memory.done, memory.shrunk)
    assert [word for of_kind in words for word in of_kind] == [0] * (2 + 2 * MAX_WORKERS)


def test_flops_of_an_op_are_those_of_its_widest_projection(memory):
    assert memory.op_flops(4, 8) == 2 * 4 * 8 * (33 + 65)


def test_close_leaves_no_fd_and_may_come_twice():
    gc.collect()  # what earlier tests left open is not closed in the middle of this one
    before = set(os.listdir("/proc/self/fd"))
    memory = ExchangeMemory.create(5, 33, 65, torch.float32, pinned=False)
    memory.close()
    memory.close()
    assert memory.exchange.x.sum() == 0
    # Python's mapping has an fd of its own.
    del memory
    assert set(os.listdir("/proc/self/fd")) == before


def test_what_does_not_fit_is_refused(memory):
    with pytest.raises(ValueError, match="room for"):
        send_rows(torch.zeros(6, 33, dtype=torch.bfloat16), memory.exchange, op_words(1, 6))
