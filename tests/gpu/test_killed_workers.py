"""CPU workers killed in the middle of prefills on a GPU, which is usable afterwards."""

from __future__ import annotations

import pytest
import torch

from tests.fleet.test_killed_workers import run_and_kill
from tests.fleet.test_parity import Oracle, answer, assert_same
from tests.fleet.test_partial_assist import oracle

__all__ = ["oracle"]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_fifty_killed_workers_cost_no_answer(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    run_and_kill(oracle, "cuda", monkeypatch)
    monkeypatch.undo()
    answers, _ = answer(oracle, oracle.requests, device="cuda")
    assert_same(oracle, answers)
