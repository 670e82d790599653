"""CUDA graphs of steps, one for each size of batch and way of computing LoRA, captured when first needed.

Which adapters a step has, and their ranks, is in its inputs: it changes no graph, as long as no adapter
changes projections that none has changed before (`pool_lora`, which is told of them at the start).

A step can be cut into pieces, a graph each, so that what comes between two of them, such as waiting for a
layer of an adapter, is not part of any. On the CPU, which has no graphs, each step is computed as it comes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

# Size, anything that says how to compute, and the number of a piece -> computes that piece of a step of that
# size on the current stream, from fixed buffers into fixed buffers. Computing a step twice must change
# nothing.
ComputePiece: TypeAlias = Callable[[int, Hashable, int], object]
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
        compute: one piece of one step.
        num_pieces: of each step.
        device: where it computes.
        stream: on which all of it is replayed, if at the same time as other graphs: cuBLAS has a workspace
            for each stream that it is captured on, and products that share one may never end.
    """

    def __init__(
        self,
        compute: ComputePiece,
        num_pieces: int,
        device: torch.device,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self._compute, self._num_pieces, self._stream = compute, num_pieces, stream
        self._has_graphs = device.type == "cuda"
        self._graphs: dict[tuple[int, Hashable], list[torch.cuda.CUDAGraph]] = {}
        self._memory_pool: Any = None  # torch's handle has no public type

    def run(
        self,
        size: int,
        variant: Hashable,
        before: BeforePiece = lambda piece: None,
        pieces: Sequence[int] | None = None,
    ) -> None:
        """Compute these pieces of a step, all by default; `before` is called with the number of each piece
        before it is queued. What was not prepared is captured first, which computes in the same buffers: only
        before the first piece of a step."""
        chosen = range(self._num_pieces) if pieces is None else pieces
        if chosen:
            self.prepare(size, variant)
        for piece in chosen:
            before(piece)
            if self._has_graphs:
                self._graphs[size, variant][piece].replay()
            else:
                self._compute(size, variant, piece)

    def prepare(self, size: int, variant: Hashable) -> None:
        """Compile what such steps need, and capture their graphs, if that has not been done."""
        if self._has_graphs and (size, variant) not in self._graphs:
            self._graphs[size, variant] = self._capture(size, variant)

    def drop(self, is_stale: Callable[[Hashable], bool] = lambda variant: True) -> None:
        """Give graphs of some variants back, of all by default, with what they hold; none of them must be
        under way. Steps capture them anew."""
        for key in [key for key in self._graphs if is_stale(key[1])]:
            del self._graphs[key]

    def _capture(self, size: int, variant: Hashable) -> list[torch.cuda.CUDAGraph]:
        pieces = range(self._num_pieces)
        # Compiles kernels and makes their buffers, which a capture must not.
        for piece in pieces:
            self._compute(size, variant, piece)
        torch.cuda.synchronize()
        graphs = [torch.cuda.CUDAGraph() for _ in pieces]
        for piece, graph in enumerate(graphs):
            # Graphs run one after the other: they can share their memory.
            with (
                _without_collection(),
                torch.cuda.graph(
                    graph, pool=self._memory_pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                self._compute(size, variant, piece)
            self._memory_pool = self._memory_pool or graph.pool()
        return graphs
