from __future__ import annotations

import gc
import os

import pytest
import torch

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


def test_words_x_and_result_do_not_overlap(memory):
    exchange = memory.exchange
    parts = (exchange.sent, exchange.failed, exchange.done, exchange.x, exchange.result)
    for value, part in enumerate(parts, start=1):
        part.fill_(value)
    for value, part in enumerate(parts, start=1):
        assert (part == value).all()
    assert len(memory.done) == MAX_WORKERS
    assert memory.sent.tolist() + memory.failed.tolist() == [1, 2]


def test_begins_with_no_op_sent_done_or_failed(memory):
    assert memory.sent.tolist() + memory.failed.tolist() + memory.done.tolist() == [0] * (2 + MAX_WORKERS)


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
