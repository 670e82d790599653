"""Whether the time of a decoding step's LoRA part is a line, over batches of several sizes and mixes of
ranks: alpha · (batch size · largest rank) + beta in the padded form, alpha · (sum of ranks) + beta in the
unpadded one (CaraServe, arXiv 2401.11240, whose scheduler is told the cost of a batch so).

How they are measured, `fleet.kernel_batches` says: `caraserve profile` fits the same times.
"""

from __future__ import annotations

from statistics import median

from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_cases import FitCase
from caraserve_cli.bench.kernel_result import FitPoint, FitResult
from caraserve_cli.fleet.kernel_batches import BGMV, MBGMV, BatchSizes, measure_batches
from caraserve_cli.perf.least_squares import fit_line


def measure_fit(bench: KernelBench, case: FitCase, max_tokens: int) -> FitResult:
    """Both forms over all batches; see `kernel_lora.measure_lora` for `max_tokens`."""
    sizes = BatchSizes(case.batch_sizes, case.largest_ranks, case.num_layers)
    batches = list(measure_batches(bench, bench.timer, sizes, max_tokens))
    points = tuple(
        FitPoint(
            mix=batch.mix,
            batch_size=len(batch.adapter_ranks),
            largest_rank=max(batch.adapter_ranks),
            sum_of_ranks=sum(batch.adapter_ranks),
            mbgmv_us=median(batch.runs_us[MBGMV]),
            bgmv_us=median(batch.runs_us[BGMV]),
        )
        for batch in batches
    )
    return FitResult(
        case=case,
        repeats=len(batches[-1].runs_us[MBGMV]),
        points=points,
        mbgmv=fit_line([each.sum_of_ranks for each in points], [each.mbgmv_us for each in points]),
        bgmv=fit_line([each.padded_ranks for each in points], [each.bgmv_us for each in points]),
        wrong=bench.wrong(max(batch.error for batch in batches)),
    )
