"""Round trips through a real pool of workers on this machine: of which ops, never how long they take."""

from __future__ import annotations

import os

import pytest
import torch

from caraserve_cli.coldstart.assistant import Assistance
from caraserve_cli.core import BaseShape
from caraserve_cli.errors import ProfileError
from caraserve_cli.fleet.profile_cpu_lora import RoundTripPlan, measure_round_trips
from caraserve_cli.perf.cpu_lora import CpuLoraOp
from tests.coldstart.worker_pools import PATIENCE_MS, nurseries_of, workers_of

_SHAPE = BaseShape(
    num_layers=2,
    hidden_size=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=32,
    vocab_size=32,
)
_PLAN = RoundTripPlan(num_tokens=(1, 40), lora_ranks=(2, 8), num_layers=4, num_runs=2, late_ms=PATIENCE_MS)


def _measure(dtype: torch.dtype = torch.float32) -> tuple[list[CpuLoraOp], list[float]]:
    """With three workers, whatever the cores."""
    cores = sorted(os.sched_getaffinity(0))
    return measure_round_trips(_SHAPE, dtype, torch.device("cpu"), [cores[0]] * 3, _PLAN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ops_of_two_projections_are_measured_as_they_are_cut(dtype: torch.dtype) -> None:
    ops, times_ms = _measure(dtype)
    # q, k and v have a worker each; of o, alone, all three have rows of 40 tokens.
    of_qkv = [
        CpuLoraOp(tokens, 16, (16, 8, 8), lora_rank, 3, 16, 32) for lora_rank in (2, 8) for tokens in (1, 40)
    ]
    of_o = [
        CpuLoraOp(tokens, 16, (16,), lora_rank, workers, 16, 16)
        for lora_rank in (2, 8)
        for tokens, workers in ((1, 1), (40, 3))
    ]
    assert ops == of_qkv + of_o
    assert len(times_ms) == len(ops)
    assert min(times_ms) > 0
    assert not nurseries_of(os.getpid()) | workers_of(os.getpid())


def test_sizes_that_always_come_too_late_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second one of eight is, in all rounds."""
    answers = iter([True, False] * 4 * (1 + _PLAN.num_runs))
    monkeypatch.setattr(Assistance, "was_in_time", property(lambda _: next(answers)))
    ops, _ = _measure()
    assert [op.num_tokens for op in ops] == [1] * 4


def test_workers_that_are_never_in_time_are_no_machine_to_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Assistance, "was_in_time", property(lambda _: False))
    with pytest.raises(ProfileError, match=r"8 of 8 sizes of ops came too late .*`caraserve profile` again$"):
        _measure()
    assert not nurseries_of(os.getpid()) | workers_of(os.getpid())
