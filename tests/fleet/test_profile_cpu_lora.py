from __future__ import annotations

import torch

from caraserve_cli.core import BaseShape
from caraserve_cli.fleet.profile_cpu_lora import LORA_RANKS, WORKER_TOKENS, measure_cpu_lora

_SHAPE = BaseShape(
    num_layers=2,
    hidden_size=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=32,
    vocab_size=32,
)


def test_one_worker_is_measured_with_all_modules_of_a_projection_and_with_one() -> None:
    num_threads = torch.get_num_threads()
    ops, times_ms = measure_cpu_lora(_SHAPE, torch.float32)
    assert torch.get_num_threads() == num_threads
    # q; q, k and v; o.
    assert {op.out_widths for op in ops} == {(16,), (16, 8, 8)}
    assert len(ops) == len(times_ms) == 3 * len(LORA_RANKS) * len(WORKER_TOKENS)
    assert {op.num_workers for op in ops} == {1}
    assert min(times_ms) > 0
