"""The LoRA part of decoding steps in both forms, over batches of several sizes and mixes of ranks: the times
through which the lines of both kernels are drawn (paper, section 2).

All adapters of a form lie in one pool and all batches of a size replay one graph, as in a run. The padded
pool has room for the largest of all ranks; a step computes the largest of its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from caraserve_cli.adapters.packing import LoraForm, PaddedForm, UnpaddedForm
from caraserve_cli.fleet.device_timer import DeviceTimer, Work
from caraserve_cli.fleet.kernel_place import KernelPlace
from caraserve_cli.fleet.kernel_pool import PoolStep, RandomPool, StepLaunches, even_segments

MBGMV, BGMV = UnpaddedForm.kernel, PaddedForm.kernel

# Runs of each batch at most: there are many, and their noise is part of what a line must bear.
_MOST_REPEATS = 5


@dataclass(frozen=True, slots=True)
class BatchSizes:
    """Which batches.

    Attributes:
        batch_sizes: requests, each with an adapter of its own.
        largest_ranks: of the batches; their mixes are of these ranks.
        num_layers: that are computed; None for those of the base.
    """

    batch_sizes: tuple[int, ...]
    largest_ranks: tuple[int, ...]
    num_layers: int | None = None


@dataclass(frozen=True, slots=True)
class KernelBatch:
    """One batch that was measured.

    Attributes:
        mix: of its ranks, in words.
        adapter_ranks: the rank of each request's adapter.
        runs_us: kernel → all layers' LoRA part, of each run.
        error: the largest of both kernels.
    """

    mix: str
    adapter_ranks: tuple[int, ...]
    runs_us: Mapping[str, Sequence[float]]
    error: float


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """A form's pool, its steps, and for each batch size its launches and the graph of them."""

    pool: RandomPool
    step: PoolStep
    launches: Mapping[int, StepLaunches]
    works: Mapping[int, Work]

    def error(self, batch_size: int) -> float:
        """Write a batch's work lists; the largest error of what is computed with them, a kernel configuration
        being chosen by the size: of the last layer, and of the graph."""
        context = self.step.write(even_segments(batch_size, batch_size))
        replayed = self.launches[batch_size].error(self.works[batch_size].run)
        return max(replayed, self.step.error(context, batch_size))


def rank_mixes(largest_rank: int, lora_ranks: Sequence[int], num_adapters: int) -> dict[str, tuple[int, ...]]:
    """Name → ranks of `num_adapters` adapters. The first has the largest, so that the first few of them make
    a batch with the same largest rank; mixes that come out equal are there once."""
    up_to = sorted((lora_rank for lora_rank in set(lora_ranks) if lora_rank <= largest_rank), reverse=True)
    mixes = {
        "all equal": (largest_rank,) * num_adapters,
        "one largest": (largest_rank, *(up_to[-1],) * (num_adapters - 1)),
        "cycle": tuple(up_to[index % len(up_to)] for index in range(num_adapters)),
    }
    return {name: mix for name, mix in mixes.items() if mix != mixes["all equal"] or name == "all equal"}


def measure_batches(
    place: KernelPlace, timer: DeviceTimer, sizes: BatchSizes, max_tokens: int
) -> Iterator[KernelBatch]:
    """Both forms over all batches, the runs of both interleaved.

    Args:
        place: where.
        timer: of the device.
        sizes: of the batches.
        max_tokens: of a step; see `PoolStep`.
    """
    num_adapters, most_rank = max(sizes.batch_sizes), max(sizes.largest_ranks)
    forms = {
        MBGMV: _prepare(place, timer, sizes, UnpaddedForm(), max_tokens),
        BGMV: _prepare(place, timer, sizes, PaddedForm(most_rank), max_tokens),
    }
    for largest_rank in sizes.largest_ranks:
        for mix, adapter_ranks in rank_mixes(largest_rank, sizes.largest_ranks, num_adapters).items():
            for form in forms.values():
                form.pool.fill(adapter_ranks)
            for batch_size in sizes.batch_sizes:
                error = max(form.error(batch_size) for form in forms.values())
                works = {name: form.works[batch_size] for name, form in forms.items()}
                runs_us = timer.runs_us(works, _MOST_REPEATS)
                yield KernelBatch(mix, adapter_ranks[:batch_size], runs_us, error)


def _prepare(
    place: KernelPlace, timer: DeviceTimer, sizes: BatchSizes, form: LoraForm, max_tokens: int
) -> _Form:
    """A pool with room for all adapters at the largest rank, and captured graphs."""
    num_adapters, most_rank = max(sizes.batch_sizes), max(sizes.largest_ranks)
    shape = replace(place.shape, num_layers=sizes.num_layers or place.shape.num_layers)
    pool = RandomPool(place, shape, form, [most_rank] * num_adapters)
    pool.fill([most_rank] * num_adapters)
    step = PoolStep(place, pool, max_tokens, decoding=True)
    launches: dict[int, StepLaunches] = {}
    works: dict[int, Work] = {}
    for batch_size in sizes.batch_sizes:
        context = step.write(even_segments(batch_size, batch_size))
        launches[batch_size] = step.launches(context, batch_size)
        works[batch_size] = timer.capture([launches[batch_size]], 1)
    return _Form(pool, step, launches, works)
