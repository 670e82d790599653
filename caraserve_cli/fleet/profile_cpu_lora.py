"""How long one CPU worker takes for LoRA: the arithmetic of a worker, called in this process on one thread.

As a worker does, it reads the weights from a mapping of shared memory whose pages are mapped, has its views
made before the clock starts, and computes one module or several. Nothing was read ahead: a worker that waits
between ops is faster. Several workers are not measured beside each other here. Fits nothing.
"""

from __future__ import annotations

import mmap
import os
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from caraserve_cli.adapters.packing import fused_groups
from caraserve_cli.coldstart.arena_view import ArenaView
from caraserve_cli.coldstart.cpu_lora import GroupProducts, choose_compute_dtype
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
    """Ops of one worker, on the first two fused projections of the base and on one module of the first, and
    their median milliseconds.

    Raises:
        OSError: there is no memory for the weights.
    """
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(fused_groups(shape)[:2], dtype)
    finally:
        torch.set_num_threads(num_threads)


def _measure(groups: Sequence[FusedGroup], dtype: torch.dtype) -> tuple[list[CpuLoraOp], list[float]]:
    # A ticket gives one worker all modules of a projection, or one of them.
    parts = {(index, range(num)) for index, group in enumerate(groups) for num in (1, len(group.modules))}
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
        arena = _shared_weights(layout.num_elements, dtype)
        for index, modules in sorted(parts, key=lambda part: (part[0], len(part[1]))):
            group, entries = groups[index], layout.placed(0)[:, index]
            out_widths = group.out_widths[: modules.stop]
            for num_tokens in WORKER_TOKENS:
                ops.append(CpuLoraOp(num_tokens, group.in_width, out_widths, lora_rank, 1))
                times_ms.append(_median_ms(group, modules, entries, arena, num_tokens))
    return ops, times_ms


def _shared_weights(num_elements: int, dtype: torch.dtype) -> torch.Tensor:
    """Random weights as a worker maps them, every page mapped; [num_elements]."""
    num_bytes = num_elements * dtype.itemsize
    fd = os.memfd_create("caraserve-profile")
    try:
        os.ftruncate(fd, num_bytes)
        torch.frombuffer(mmap.mmap(fd, num_bytes), dtype=dtype).normal_(std=_WEIGHT_STD)
        view = ArenaView(fd, num_bytes, dtype)
    finally:
        os.close(fd)
    view.touch(0, num_elements)
    return view.elements


def _median_ms(
    group: FusedGroup, modules: range, entries: NDArray[np.int64], arena: torch.Tensor, num_tokens: int
) -> float:
    x = torch.randn(num_tokens, group.in_width).to(arena.dtype)
    out = torch.empty(num_tokens, sum(group.out_widths), dtype=arena.dtype)
    compute_dtype = choose_compute_dtype(arena.dtype)
    layers = [GroupProducts(x, out, arena, entry, group, modules, compute_dtype) for entry in entries]
    times_ms: list[float] = []
    for _ in range(1 + _ROUNDS):
        for products in layers:
            started_s = time.perf_counter()
            products.run()
            times_ms.append(1000 * (time.perf_counter() - started_s))
    return statistics.median(times_ms[len(layers) :])
