"""The assisted ops of one prefill, in all the ways in which they are timed: with CPU workers, launched one by
one, replayed from a CUDA graph, or synchronised explicitly.

What all do in each layer: x of each projection goes to the workers, the base's product of the projection is
queued, and what the workers made of x is added to it. The rest of a layer is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.bench.assist_bench import LATE_MS, AssistBench, Op
from caraserve_cli.coldstart.assistant import AssistedSegment
from caraserve_cli.coldstart.worker_pool import AssistRows, Ticket
from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.errors import InputError
from caraserve_cli.fleet.kernel_place import largest_error

# A prefill of which a result came too late is computed again with another adapter, so many times.
_NUM_TRIES = 5
# Any slot will do: one adapter is noted at a time.
_SLOT = 0

# Computes a prefill with an adapter; seconds, or None if a worker was late.
Way = Callable[[AdapterWeights], float | None]


class Prefill:
    """Buffers of a prefill.

    Args:
        bench: workers and adapters.
        num_tokens: of the prompt.

    Attributes:
        xs: group → x [t, in_width].
        ys: of each op, [t, sum of out_widths].
    """

    def __init__(self, bench: AssistBench, num_tokens: int) -> None:
        self.bench, self.num_tokens, setup = bench, num_tokens, bench.setup
        self.ops: Sequence[Op] = setup.ops
        self.xs = {
            group: setup.random(num_tokens, weight.shape[1]) for group, weight in bench.base_weights.items()
        }
        self.ys = [
            torch.zeros(
                num_tokens, bench.base_weights[group].shape[0], dtype=setup.dtype, device=setup.device
            )
            for _, group in self.ops
        ]

    def launch(self, *, with_base: bool) -> None:
        """Queue all ops; without the base's products what the workers made is added to what is there."""
        ops = self.bench.assistant.ops
        for (layer, group), y in zip(self.ops, self.ys, strict=True):
            ops.send(layer, group, self.xs[group])
            if with_base:
                self.multiply(group, y)
            ops.receive(layer, group, y)

    def multiply(self, group: int, y: Tensor) -> None:
        """Queue the base's product of a projection."""
        torch.mm(self.xs[group], self.bench.base_weights[group].T, out=y)

    def clear(self) -> None:
        """Queue: all results are zeros."""
        for y in self.ys:
            y.zero_()

    def capture(self, *, with_base: bool) -> Callable[[], None]:
        """`launch` as a CUDA graph; what the graph is replayed for is told by the words of the ops."""
        launch = partial(self.launch, with_base=with_base)
        self.bench.assistant.ops.clear()
        launch()  # Compiles what is not compiled, and makes what is made once.
        self.bench.setup.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            launch()
        return graph.replay

    def assisted(self, launch: Callable[[], None], weights: AdapterWeights) -> float | None:
        """A `Way`: the workers compute what `launch` sends, and nobody waits for them but the device."""
        self.get_ready(weights)
        began_s = time.perf_counter()
        segments = [AssistedSegment(_SLOT, 0, self.num_tokens)]
        num_layers = self.bench.setup.shape.num_layers
        assistance = self.bench.assistant.begin(segments, self.num_tokens, num_layers)
        if assistance is None:
            return None
        assistance.tell_device()
        launch()
        self.bench.setup.synchronize()
        seconds = time.perf_counter() - began_s
        return seconds if assistance.was_in_time else None

    def synchronised(self, weights: AdapterWeights) -> float | None:
        """A `Way`: as systems without signals do it. x is copied to the workers' memory and waited for, then
        the host tells the workers; it waits for them, then for the copy of their result to the device. The
        base's product is queued while they compute, so that it runs beside them here too."""
        rows = AssistRows(0, self.num_tokens, placed_table(weights))
        self.get_ready(weights)
        began_s = time.perf_counter()
        ticket = self.bench.pool.submit([rows], self.ops, self.num_tokens)
        for number, ((_, group), y) in enumerate(
            zip(self.ops, self.ys, strict=True), start=ticket.first_number
        ):
            x, memory = self.xs[group], self.bench.memory
            x_host, result = memory.rows(self.num_tokens, x.shape[1], y.shape[1])
            x_host.copy_(x, non_blocking=True)
            self.bench.setup.synchronize()
            memory.sent[0] = number
            self.multiply(group, y)
            if not self._wait(ticket, number):
                return None
            update = result.to(y.device, non_blocking=True)
            self.bench.setup.synchronize()
            y.add_(update)
        self.bench.setup.synchronize()
        return time.perf_counter() - began_s

    def error(self, weights: AdapterWeights, *, with_base: bool) -> float:
        """The largest difference of any op from its float32 reference, of the largest value."""
        return max(
            largest_error(y, self._reference(layer, group, weights, with_base=with_base))
            for (layer, group), y in zip(self.ops, self.ys, strict=True)
        )

    def _reference(self, layer: int, group: int, weights: AdapterWeights, *, with_base: bool) -> Tensor:
        x = self.xs[group].float()
        expected = lora_reference(self.bench, layer, group, weights, x)
        if with_base:
            expected += x @ self.bench.base_weights[group].float().T
        return expected

    def get_ready(self, weights: AdapterWeights) -> None:
        """Have workers, buffers and the device wait for a prefill with this adapter."""
        self.bench.assistant.note(_SLOT, weights)
        self.clear()
        self.bench.wait_for_workers()
        self.bench.setup.synchronize()

    def _wait(self, ticket: Ticket, number: int) -> bool:
        """Wait for the workers of an op; False, and its ticket is given up, if one is late."""
        memory, until_s = self.bench.memory, time.perf_counter() + LATE_MS / 1000
        workers = [worker for worker in range(ticket.workers.bit_length()) if ticket.workers >> worker & 1]
        while any(memory.done[worker] < number for worker in workers):
            if time.perf_counter() > until_s:
                memory.failed[0] = ticket.last_number
                return False
        return True


def run_way(way: Way, bench: AssistBench, lora_rank: int) -> tuple[float, AdapterWeights]:
    """Seconds of a prefill with the next adapter of this rank, and that adapter.

    Raises:
        InputError: workers are late every time.
    """
    for _ in range(_NUM_TRIES):
        weights = bench.next_adapter(lora_rank)
        seconds = way(weights)
        if seconds is not None:
            return seconds, weights
    raise InputError(
        f"CPU workers were {LATE_MS / 1000:g} s late {_NUM_TRIES} times in a row; stop other work on this "
        "machine"
    )


def placed_table(weights: AdapterWeights) -> NDArray[np.int64]:
    """Of an adapter in the arena, int64 [layers, groups, TABLE_FIELDS], offsets in elements of the arena."""
    packed = weights.packed
    assert packed is not None
    assert packed.arena_offset_bytes is not None, "the arena has room for all adapters"
    return packed.layout.placed(packed.arena_offset_bytes // packed.blob.itemsize)


def lora_reference(bench: AssistBench, layer: int, group: int, weights: AdapterWeights, x: Tensor) -> Tensor:
    """x·Aᵀ·B of all modules of an op side by side, zeros for those that are not changed: float32
    [t, sum of out_widths] where x [t, in_width] is, which is float32."""
    columns: list[Tensor] = []
    for module, width in zip(FUSED_MODULES[group], bench.setup.groups[group].out_widths, strict=True):
        pair = weights.pairs.get((layer, module))
        if pair is None:
            columns.append(x.new_zeros(x.shape[0], width))
        else:
            a, b_rows = (side.to(x.device).float() for side in (pair.a, pair.b_rows))
            columns.append(x @ a.T @ b_rows)
    return torch.cat(columns, dim=1)
