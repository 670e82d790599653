"""CUDA graphs of decoding steps, one for each size of batch and way of computing LoRA, captured when first
needed. Which adapters a step has, and their ranks, is in its inputs: it changes no graph, as long as no
adapter changes projections that none has changed before (`pool_lora`, which is told of them at the start).
On the CPU, which has no graphs, each step is computed as it comes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Sizes that graphs are captured for: up to 8 each power of two, then in steps of 8, 16 and 32, so that
# padding seldom adds more than a quarter. Chosen, not measured.
_STEPS = ((32, 8), (128, 16), (2**31, 32))


def padded_size(num_sequences: int, max_sequences: int) -> int:
    """The size of graph for so many sequences."""
    if num_sequences <= 8:
        return min(1 << (num_sequences - 1).bit_length(), max_sequences)
    step = next(step for most, step in _STEPS if num_sequences <= most)
    return min(-(-num_sequences // step) * step, max_sequences)


def padded_sizes(max_sequences: int) -> list[int]:
    """All sizes that steps of up to `max_sequences` are padded to."""
    return sorted({padded_size(count, max_sequences) for count in range(1, max_sequences + 1)})


@contextmanager
def _without_collection() -> Iterator[None]:
    """The garbage of an earlier replica may hold graphs, and to free one breaks a capture under way."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class DecodeGraphs:
    """Captures and replays `compute(size, variant)`.

    Args:
        compute: computes a step of `size` sequences on the current stream, from fixed buffers; `variant` is
            anything that says how. Computing a step twice must change nothing. It returns a fixed buffer,
            so that graphs can share all memory of their own.
        device: where it computes.
    """

    def __init__(self, compute: Callable[[int, Hashable], Tensor], device: torch.device) -> None:
        self._compute = compute
        self._has_graphs = device.type == "cuda"
        self._graphs: dict[tuple[int, Hashable], torch.cuda.CUDAGraph] = {}
        self._outputs: dict[int, Tensor] = {}
        self._memory_pool: Any = None  # torch's handle has no public type

    def run(self, size: int, variant: Hashable) -> Tensor:
        """The step's output, as `compute` returns it."""
        if not self._has_graphs:
            return self._compute(size, variant)
        self.prepare(size, variant)
        self._graphs[size, variant].replay()
        return self._outputs[size]

    def prepare(self, size: int, variant: Hashable) -> None:
        """Compile what such steps need, and capture their graph, if that has not been done."""
        if self._has_graphs and (size, variant) not in self._graphs:
            self._graphs[size, variant] = self._capture(size, variant)

    def _capture(self, size: int, variant: Hashable) -> torch.cuda.CUDAGraph:
        # Compiles kernels and makes their buffers, which a capture must not.
        self._outputs[size] = self._compute(size, variant)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Graphs run one after the other: they can share their memory.
        with (
            _without_collection(),
            torch.cuda.graph(graph, pool=self._memory_pool, capture_error_mode="thread_local"),
        ):
            self._compute(size, variant)
        self._memory_pool = self._memory_pool or graph.pool()
        return graph
