"""How long one CPU worker takes for LoRA: the arithmetic of a worker, called in this process on one thread.

Several workers are not measured beside each other here. Fits nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch

from caraserve_cli.adapters.packing import fused_groups
from caraserve_cli.coldstart.cpu_lora import add_group
from caraserve_cli.core import BaseShape
from caraserve_cli.perf.cpu_lora import CpuLoraOp
from caraserve_kernels.lora_layout import AdapterLayout, FusedGroup

WORKER_TOKENS = (1, 8, 16, 32, 64, 128)
LORA_RANKS = (8, 32, 64, 128)
# Layers whose weights are multiplied in turn, so that no cache has what a run would have to read; the first
# time through is not counted, and the median of the others counts.
_LAYERS = 8
_ROUNDS = 3
_WEIGHT_STD = 0.02


def measure_cpu_lora(shape: BaseShape, dtype: torch.dtype) -> tuple[list[CpuLoraOp], list[float]]:
    """Ops of one worker, on the first two fused projections of the base, and their median milliseconds."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(fused_groups(shape)[:2], dtype)
    finally:
        torch.set_num_threads(num_threads)


def _measure(groups: Sequence[FusedGroup], dtype: torch.dtype) -> tuple[list[CpuLoraOp], list[float]]:
    ops: list[CpuLoraOp] = []
    times_ms: list[float] = []
    for lora_rank in LORA_RANKS:
        ranks = {
            (layer, module): lora_rank
            for layer in range(_LAYERS)
            for group in groups
            for module in group.modules
        }
        layout = AdapterLayout.build(groups, _LAYERS, ranks)
        arena = torch.empty(layout.num_elements, dtype=dtype).normal_(std=_WEIGHT_STD)
        for index, group in enumerate(groups):
            entries = layout.placed(0)[:, index]
            for num_tokens in WORKER_TOKENS:
                ops.append(CpuLoraOp(num_tokens, group.in_width, group.out_widths, lora_rank, 1))
                times_ms.append(_median_ms(group, entries, arena, num_tokens))
    return ops, times_ms


def _median_ms(
    group: FusedGroup,
    entries: np.ndarray[tuple[int, int], np.dtype[np.int64]],
    arena: torch.Tensor,
    num_tokens: int,
) -> float:
    x = torch.randn(num_tokens, group.in_width).to(arena.dtype)
    out = torch.empty(num_tokens, sum(group.out_widths), dtype=arena.dtype)
    times_ms: list[float] = []
    for _ in range(1 + _ROUNDS):
        for entry in entries:
            started_s = time.perf_counter()
            add_group(x, out, arena, entry, group)
            times_ms.append(1000 * (time.perf_counter() - started_s))
    return statistics.median(times_ms[len(entries) :])
