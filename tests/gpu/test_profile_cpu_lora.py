"""Round trips of ops from a GPU through a real pool: of which ops, and never how long they take."""

from __future__ import annotations

import os

import pytest
import torch

from caraserve_cli.core import BaseShape
from caraserve_cli.fleet.profile_cpu_lora import RoundTripPlan, measure_round_trips
from tests.coldstart.worker_pools import PATIENCE_MS, workers_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPE = BaseShape(
    num_layers=2,
    hidden_size=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    intermediate_size=512,
    vocab_size=32,
)
PLAN = RoundTripPlan(num_tokens=(1, 40), lora_ranks=(8, 64), num_layers=4, num_runs=2, late_ms=PATIENCE_MS)


def test_every_size_comes_back_to_a_gpu() -> None:
    cores = sorted(os.sched_getaffinity(0), reverse=True)
    ops, times_ms = measure_round_trips(SHAPE, torch.bfloat16, torch.device("cuda"), cores[:3], PLAN)
    sizes = {(op.num_tokens, op.lora_rank, len(op.out_widths)) for op in ops}
    assert sizes == {
        (tokens, lora_rank, modules) for tokens in (1, 40) for lora_rank in (8, 64) for modules in (1, 3)
    }
    assert len(times_ms) == len(ops) == len(sizes)
    assert min(times_ms) > 0
    assert not workers_of(os.getpid())
