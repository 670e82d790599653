"""CUDA graphs of steps, one for each size of batch and way of computing LoRA, captured when first needed.

Which adapters a step has, and their ranks, is in its inputs: it changes no graph, as long as no adapter
changes projections that none has changed before (`pool_lora`, which is told of them at the start).

A step can be cut into pieces, a graph each, so that what comes between two of them, such as waiting for a
layer of an adapter, is not part of any. On the CPU, which has no graphs, each step is computed as it comes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

# Size, and anything that says how to compute -> computes a step of that size on the current stream, from
# fixed buffers into a fixed buffer, a piece for each item it yields. Computing a step twice must change
# nothing.
ComputePieces: TypeAlias = Callable[[int, Hashable], Iterator[object]]
BeforePiece: TypeAlias = Callable[[int], None]


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


class StepGraphs:
    """Captures and replays steps.

    Args:
        compute: one step.
        num_pieces: that it yields.
        device: where it computes.
    """

    def __init__(self, compute: ComputePieces, num_pieces: int, device: torch.device) -> None:
        self._compute, self._num_pieces = compute, num_pieces
        self._has_graphs = device.type == "cuda"
        self._graphs: dict[tuple[int, Hashable], list[torch.cuda.CUDAGraph]] = {}
        self._memory_pool: Any = None  # torch's handle has no public type

    def run(self, size: int, variant: Hashable, before: BeforePiece = lambda piece: None) -> None:
        """Compute a step; `before` is called with the number of each piece, from 0, before it is queued."""
        if self._has_graphs:
            self.prepare(size, variant)
            for piece, graph in enumerate(self._graphs[size, variant]):
                before(piece)
                graph.replay()
            return
        pieces = self._compute(size, variant)
        for piece in range(self._num_pieces):
            before(piece)
            next(pieces)

    def prepare(self, size: int, variant: Hashable) -> None:
        """Compile what such steps need, and capture their graphs, if that has not been done."""
        if self._has_graphs and (size, variant) not in self._graphs:
            self._graphs[size, variant] = self._capture(size, variant)

    def _capture(self, size: int, variant: Hashable) -> list[torch.cuda.CUDAGraph]:
        # Compiles kernels and makes their buffers, which a capture must not.
        for _ in self._compute(size, variant):
            pass
        torch.cuda.synchronize()
        graphs: list[torch.cuda.CUDAGraph] = []
        pieces = self._compute(size, variant)
        for _ in range(self._num_pieces):
            graph = torch.cuda.CUDAGraph()
            # Graphs run one after the other: they can share their memory.
            with (
                _without_collection(),
                torch.cuda.graph(graph, pool=self._memory_pool, capture_error_mode="thread_local"),
            ):
                next(pieces)
            self._memory_pool = self._memory_pool or graph.pool()
            graphs.append(graph)
        return graphs
