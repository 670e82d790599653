"""Whether the time of a decoding step's LoRA part is a line, over batches of several sizes and mixes of
ranks: alpha · (batch size · largest rank) + beta in the padded form, alpha · (sum of ranks) + beta in the
unpadded one (CaraServe, arXiv 2401.11240, whose scheduler is told the cost of a batch so).

All adapters of a form lie in one pool and all batches of a size replay one graph, as in a run. The padded
pool has room for the largest of all ranks; a step computes the largest of its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from caraserve_cli.adapters.packing import LoraForm, PaddedForm, UnpaddedForm
from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_cases import FitCase
from caraserve_cli.bench.kernel_lora import BGMV, MBGMV
from caraserve_cli.bench.kernel_pool import PoolStep, RandomPool, StepLaunches, even_segments
from caraserve_cli.bench.kernel_result import FitPoint, FitResult
from caraserve_cli.bench.kernel_timer import Work
from caraserve_cli.perf.least_squares import fit_line

# Runs of each point at most: there are many points, and their noise is part of what the fit must bear.
_MOST_REPEATS = 5


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


def measure_fit(bench: KernelBench, case: FitCase, max_tokens: int) -> FitResult:
    """Both forms over all batches; see `kernel_lora.measure_lora` for `max_tokens`."""
    num_adapters, most_rank = max(case.batch_sizes), max(case.largest_ranks)
    forms = {
        MBGMV: _prepare(bench, case, UnpaddedForm(), max_tokens),
        BGMV: _prepare(bench, case, PaddedForm(most_rank), max_tokens),
    }
    points: list[FitPoint] = []
    errors: list[float] = []
    repeats = 0
    for largest_rank in case.largest_ranks:
        for mix, adapter_ranks in rank_mixes(largest_rank, case.largest_ranks, num_adapters).items():
            for form in forms.values():
                form.pool.fill(adapter_ranks)
            for batch_size in case.batch_sizes:
                errors += [form.error(batch_size) for form in forms.values()]
                point, repeats = _measure_point(bench, forms, mix, adapter_ranks[:batch_size])
                points.append(point)
    return FitResult(
        case=case,
        repeats=repeats,
        points=tuple(points),
        mbgmv=fit_line([each.sum_of_ranks for each in points], [each.mbgmv_us for each in points]),
        bgmv=fit_line([each.padded_ranks for each in points], [each.bgmv_us for each in points]),
        wrong=bench.wrong(max(errors)),
    )


def _prepare(bench: KernelBench, case: FitCase, form: LoraForm, max_tokens: int) -> _Form:
    """A pool with room for all adapters at the largest rank, and captured graphs."""
    num_adapters, most_rank = max(case.batch_sizes), max(case.largest_ranks)
    shape = replace(bench.shape, num_layers=case.num_layers or bench.shape.num_layers)
    pool = RandomPool(bench, shape, form, [most_rank] * num_adapters)
    pool.fill([most_rank] * num_adapters)
    step = PoolStep(bench, pool, max_tokens, decoding=True)
    launches: dict[int, StepLaunches] = {}
    works: dict[int, Work] = {}
    for batch_size in case.batch_sizes:
        context = step.write(even_segments(batch_size, batch_size))
        launches[batch_size] = step.launches(context, batch_size)
        works[batch_size] = bench.timer.capture([launches[batch_size]], 1)
    return _Form(pool, step, launches, works)


def _measure_point(
    bench: KernelBench, forms: Mapping[str, _Form], mix: str, adapter_ranks: Sequence[int]
) -> tuple[FitPoint, int]:
    """The point, whose work lists are written, and how many runs its medians are of."""
    batch_size = len(adapter_ranks)
    works = {name: form.works[batch_size] for name, form in forms.items()}
    times = bench.timer.time_us(works, _MOST_REPEATS)
    point = FitPoint(
        mix=mix,
        batch_size=batch_size,
        largest_rank=max(adapter_ranks),
        sum_of_ranks=sum(adapter_ranks),
        mbgmv_us=times[MBGMV].median,
        bgmv_us=times[BGMV].median,
    )
    return point, len(times[MBGMV].values)
