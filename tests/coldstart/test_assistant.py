"""What an assistant does where its workers, or the time they may take, run out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caraserve_cli.coldstart.assistant import Assistant, AssistedSegment, assist_outcome
from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_cli.coldstart.worker_pool import WorkerPool
from caraserve_cli.step_plan import AssistOutcome
from caraserve_kernels.host_exchange import MAX_LATE_MS
from tests.coldstart.worker_pools import open_bench

SEGMENT = [AssistedSegment(0, 0, 4)]


def test_a_worker_that_turns_out_late_after_the_plan_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_bench(1) as bench:
        assistant = Assistant(bench.memory, bench.pool, torch.device("cpu"))
        assistant._tables[0] = bench.tables[0]
        monkeypatch.setattr(WorkerPool, "num_workers", property(lambda pool: 0))
        assert assistant.begin(SEGMENT, 4, 1) is None


def test_no_step_is_waited_for_longer_than_a_device_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """However large the rank and the prompt."""
    with open_bench(1) as bench:
        assistant = Assistant(bench.memory, bench.pool, torch.device("cpu"))
        assistant._tables[0] = bench.tables[0]
        monkeypatch.setattr(ExchangeMemory, "op_flops", lambda memory, num_tokens, lora_rank: 1e15)
        assistance = assistant.begin(SEGMENT, 4, 1)
        assert assistance is not None
        assistance.tell_device()
        assert int(assistant.ops._words[0, 0, 5]) == MAX_LATE_MS * 1000
        assistance.abandon()


def test_workers_that_were_given_nothing_have_not_assisted() -> None:
    """The adapter changes nothing in the layers that are theirs."""
    with open_bench(1) as bench:
        assistant = Assistant(bench.memory, bench.pool, torch.device("cpu"))
        assistant._tables[0] = np.zeros_like(bench.tables[0])
        assistance = assistant.begin(SEGMENT, 4, 1)
        assert assistance is not None
        assert assist_outcome(assistance) is AssistOutcome.NONE
        assert assist_outcome(None) is AssistOutcome.NONE
