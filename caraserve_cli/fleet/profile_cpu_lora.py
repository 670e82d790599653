"""How long the device waits for an op of CPU workers: from sending its rows until the results are added, with
workers, cores and signals as a replica has them. Fits nothing.

The device does what it does in a step, of the op's adapter: layer after layer, and between two ops a pause
for the rest of the layer, in which workers read ahead. What differs from a step: an adapter changes one fused
projection alone, so that its workers have nothing to do for another one meanwhile; nothing else uses the
memory of the host or of the device; and no CUDA graph saves some microseconds between the device's streams.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from caraserve_cli.adapters.packing import fused_groups
from caraserve_cli.coldstart.assistant import LATE_MS, Assistance, Assistant, AssistedSegment
from caraserve_cli.coldstart.exchange_memory import ExchangeMemory
from caraserve_cli.coldstart.worker_pool import WorkerPool
from caraserve_cli.core import BaseShape
from caraserve_cli.errors import ProfileError
from caraserve_cli.fleet.cold_start import TOKENS_PER_WORKER
from caraserve_cli.fleet.uncached_adapters import MORE_THAN_CACHES_BYTES, UncachedAdapters
from caraserve_cli.perf.cpu_lora import CpuLoraOp
from caraserve_cli.perf.op_cut import OpCut
from caraserve_kernels.link_clock import pace
from caraserve_kernels.lora_layout import AdapterLayout, FusedGroup

# Ops of a run that are not counted: before its first one workers have time to read more ahead than later.
_FIRST_OPS = 2
# Between two ops, in place of the rest of a layer: a layer of a 7B base on an H100. Chosen, not measured.
_PAUSE_US = 100
# For which the device is held before a run, for each op that the host queues meanwhile: twice what it needs.
_HOLD_US_AN_OP = 300
# After a run that came too late workers may have to be replaced.
_PATIENCE_S = 30.0
_SLEEP_S = 1e-3
# The share of the sizes that must have come in time at least once, for a model to be fitted.
_LEAST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class RoundTripPlan:
    """What is measured.

    Attributes:
        num_tokens: of an op.
        lora_ranks: of its modules.
        num_layers: of an adapter, each of which is an op of a run; above those that are not counted.
        num_runs: of each size that are counted, after one that is not.
        late_ms: how late a result may be before its run is not counted.
    """

    num_tokens: Sequence[int] = (1, 8, 16, 32, 64, 128, 256)
    lora_ranks: Sequence[int] = (8, 32, 64, 128)
    num_layers: int = 10
    num_runs: int = 4
    late_ms: float = LATE_MS


def measure_round_trips(
    shape: BaseShape,
    dtype: torch.dtype,
    device: torch.device,
    cores: Sequence[int],
    plan: RoundTripPlan | None = None,
) -> tuple[list[CpuLoraOp], list[float]]:
    """Ops of the first two fused projections of the base, all their modules changed, and the milliseconds of
    each: the median of several runs, of an op of a run on average.

    Sizes of which no run was in time are left out.

    Args:
        shape: of the base.
        dtype: of weights, rows and results.
        device: that sends and adds.
        cores: of the workers, one each.
        plan: for tests, a smaller one.

    Raises:
        InputError: no worker starts.
        OSError: there is no memory for the weights.
        ProfileError: workers die, or most sizes came too late.
    """
    plan = plan or RoundTripPlan()
    with _open_bench(shape, dtype, device, cores, plan) as bench:
        times_ms: dict[_Size, list[float]] = {size: [] for size in bench.sizes}
        for run in range(1 + plan.num_runs):
            # All sizes in turn: a second in which the machine has other work hits each of them once.
            for size, of_size in times_ms.items():
                op_ms = bench.run(size)
                if run > 0 and op_ms is not None:
                    of_size.append(op_ms)
    measured = {size: statistics.median(of_size) for size, of_size in times_ms.items() if of_size}
    if len(measured) < _LEAST_SHARE * len(times_ms):
        raise ProfileError(
            f"LoRA on the CPU: {len(times_ms) - len(measured)} of {len(times_ms)} sizes of ops came too late "
            "every time; stop other work on this machine and run `caraserve profile` again"
        )
    return [size.op(bench.groups, bench.num_workers) for size in measured], list(measured.values())


class _Size(NamedTuple):
    """A size of ops: `group` is the index of the fused projection."""

    num_tokens: int
    lora_rank: int
    group: int

    def op(self, groups: Sequence[FusedGroup], num_workers: int) -> CpuLoraOp:
        """What the model is told of it, where so many workers are free."""
        group = groups[self.group]
        num_modules = len(group.modules)
        cut = OpCut.of(self.num_tokens, num_modules, num_workers, TOKENS_PER_WORKER, self.lora_rank)
        return CpuLoraOp(
            self.num_tokens,
            group.in_width,
            group.out_widths,
            self.lora_rank,
            cut.num_shares,
            TOKENS_PER_WORKER,
            sum(group.out_widths),
        )


class _Mark:
    """A moment in what a device computes; on a CPU, which computes what it is asked to at once, now."""

    def __init__(self, device: torch.device) -> None:
        self._now_s = time.perf_counter()
        self._event: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            self._event.record()

    def ms_until(self, later: _Mark) -> float:
        """From this one to a later one, both of which have passed."""
        if self._event is None or later._event is None:
            return 1000 * (later._now_s - self._now_s)
        return float(self._event.elapsed_time(later._event))


class _Bench:
    """Workers, memory full of weights, and the device's part of a run.

    Args:
        groups: of the base.
        adapters: of the groups; a new one for each run.
        assistant: of the workers.
        dtype: of rows and results.
        device: that sends and adds.
        plan: what is measured.
    """

    def __init__(
        self,
        groups: Sequence[FusedGroup],
        adapters: UncachedAdapters,
        assistant: Assistant,
        dtype: torch.dtype,
        device: torch.device,
        plan: RoundTripPlan,
    ) -> None:
        self.groups, self.num_workers = groups, assistant.num_workers
        self._adapters, self._assistant, self._dtype = adapters, assistant, dtype
        self._device, self._num_layers = device, plan.num_layers
        self.sizes = [
            _Size(num_tokens, lora_rank, group)
            for group, lora_rank, num_tokens in itertools.product((0, 1), plan.lora_ranks, plan.num_tokens)
        ]
        self._layouts = _layouts(groups, plan)
        self._clock = torch.zeros(1, dtype=torch.int64, device=device)

    def run(self, size: _Size) -> float | None:
        """Milliseconds of an op on average, of an adapter that no cache has; None if one came too late."""
        group = self.groups[size.group]
        x = torch.randn(size.num_tokens, group.in_width, device=self._device).to(self._dtype)
        y = x.new_zeros(size.num_tokens, sum(group.out_widths))
        self._assistant.note(0, self._adapters.next(self._layouts[size.group, size.lora_rank]))
        assistance = self._begin(size.num_tokens)
        if self._device.type == "cuda":
            pace(self._clock, _HOLD_US_AN_OP * self._num_layers, 1e6)
        assistance.tell_device()
        marks: list[tuple[_Mark, _Mark]] = []
        for layer in range(self._num_layers):
            pace(self._clock, _PAUSE_US, 1e6)
            before = _Mark(self._device)
            self._assistant.ops.send(layer, size.group, x)
            self._assistant.ops.receive(layer, size.group, y)
            marks.append((before, _Mark(self._device)))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        if not assistance.was_in_time:
            return None
        return statistics.fmean(before.ms_until(after) for before, after in marks[_FIRST_OPS:])

    def _begin(self, num_tokens: int) -> Assistance:
        until_s = time.monotonic() + _PATIENCE_S
        segments = [AssistedSegment(0, 0, num_tokens)]
        self._assistant.settle()
        while (assistance := self._assistant.begin(segments, num_tokens, self._num_layers)) is None:
            if time.monotonic() > until_s:
                raise ProfileError(
                    "LoRA on the CPU: its workers have died, or do not answer; stop other work on this "
                    "machine and run `caraserve profile` again"
                )
            time.sleep(_SLEEP_S)
            self._assistant.settle()
        return assistance


@contextmanager
def _open_bench(
    shape: BaseShape, dtype: torch.dtype, device: torch.device, cores: Sequence[int], plan: RoundTripPlan
) -> Iterator[_Bench]:
    groups = fused_groups(shape)
    layouts = _layouts(groups, plan)
    # No more than all runs read together: of a small base that is little.
    read = sum(layout.num_elements for layout in layouts.values()) * len(plan.num_tokens)
    largest = max(layout.num_elements for layout in layouts.values())
    num_elements = max(largest, min(MORE_THAN_CACHES_BYTES // dtype.itemsize, read * (1 + plan.num_runs)))
    adapters = UncachedAdapters(num_elements, dtype)
    memory = pool = None
    try:
        memory = ExchangeMemory.create(
            max(plan.num_tokens),
            max(group.in_width for group in groups),
            max(sum(group.out_widths) for group in groups),
            dtype,
            pinned=device.type == "cuda",
        )
        pool = WorkerPool(
            groups,
            arena_fd=adapters.fd,
            arena_bytes=adapters.num_bytes,
            exchange_memory=memory,
            dtype=dtype,
            cores=cores,
            tokens_per_worker=TOKENS_PER_WORKER,
        )
        assistant = Assistant(memory, pool, device, plan.late_ms)
        yield _Bench(groups, adapters, assistant, dtype, device, plan)
    finally:
        if pool is not None:
            pool.close()
        if memory is not None:
            memory.close()
        adapters.close()


def _layouts(groups: Sequence[FusedGroup], plan: RoundTripPlan) -> dict[tuple[int, int], AdapterLayout]:
    """(index of the group, LoRA rank) -> an adapter that changes all modules of this group alone."""
    return {
        (index, lora_rank): AdapterLayout.build(
            groups,
            plan.num_layers,
            {
                (layer, module): lora_rank
                for layer in range(plan.num_layers)
                for module in groups[index].modules
            },
        )
        for index in (0, 1)
        for lora_rank in plan.lora_ranks
    }
