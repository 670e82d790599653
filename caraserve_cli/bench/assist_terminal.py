"""The result of a benchmark of CPU workers as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.assist_result import AssistCaseResult, AssistFacts, AssistResult
from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_terminal import all_met, cannot_tell, extremes, missed, verdict_text
from caraserve_cli.bench.kernel_result import verdict_on
from caraserve_cli.bench.terminal import plain_table


def render_assist(result: AssistResult) -> RenderableType:
    """The circumstances, a table of prefills, of workers, of the traces, the verdict's lines."""
    return Group(
        _circumstances(result.facts),
        "",
        _prefill_table(result.cases),
        *_not_synchronised(result.cases),
        "",
        _worker_table(result.cases),
        "",
        _trace_table(result.cases),
        "",
        *_verdict_lines(result),
    )


def summary(case: AssistCaseResult) -> str:
    """What a case gave, in a few words."""
    return (
        f"{case.times.sync_free_ms.median:,.2f} ms, workers {case.times.speedup.median:.2f}x as fast as torch"
    )


def _circumstances(facts: AssistFacts) -> Text:
    return Text(
        f"{facts.recipe}: {facts.description}\n"
        f"shape of {facts.base}, random data, {facts.num_adapters} adapters on {', '.join(facts.modules)}\n"
        f"{facts.repeats} interleaved repeats, warm-ups: {facts.warmups}\n"
        f"{facts.device}, {facts.dtype}, {facts.versions_words}{facts.commit_words}\n"
        f"CPU workers: {facts.num_workers}, {facts.tokens_per_worker} tokens each; torch: {facts.cpu}\n"
        f"load average before: {facts.load_average:.1f} on {facts.num_cores} cores\n"
        f"large product on so many threads, {facts.compute_dtype}: {facts.peak_flops_per_s / 1e12:,.3g} "
        f"TFLOP/s; all measured in {facts.seconds:.0f} s"
    )


def _prefill_table(cases: Sequence[AssistCaseResult]) -> Table:
    # No wider than a terminal of 80 columns.
    table = plain_table("prefill, ms", "sync-free", "replayed", "with waits", "saved", "lowest to highest")
    for each in cases:
        times = each.times
        table.add_row(
            each.name,
            _median(times.sync_free_ms),
            _median(times.replayed_ms),
            _median(times.synchronised_ms),
            _median(times.saved_ms),
            "-" if times.saved_ms is None else extremes(times.saved_ms, 2),
        )
    return table


def _median(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:,.2f}"


def _whole_us(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:,.0f}"


def _not_synchronised(cases: Sequence[AssistCaseResult]) -> Iterator[Text]:
    if any(each.times.synchronised_ms is None for each in cases):
        yield Text("On a CPU nothing is waited for, replayed, or copied for torch.", style="dim")


def _worker_table(cases: Sequence[AssistCaseResult]) -> Table:
    # No wider than a terminal of 80 columns.
    table = plain_table(
        "LoRA of an op, µs", "workers", "torch", "alone", "speed-up", "extremes", "of peak", ""
    )
    for each in cases:
        times = each.times
        table.add_row(
            each.name,
            f"{times.workers_us.median:,.0f}",
            f"{times.torch_us.median:,.0f}",
            _whole_us(times.torch_alone_us),
            f"{times.speedup.median:.2f}x",
            f"{times.speedup.lowest:.2f} to {times.speedup.highest:.2f}",
            f"{each.peak_share:.1%}",
            verdict_text(verdict_on(each), is_required=any(True for _ in each.limits())),
        )
    return table


def _trace_table(cases: Sequence[AssistCaseResult]) -> Table:
    """The traces in numbers."""
    table = plain_table("traced prefill, µs of an op", "base product", "workers", "at once", "in ops")
    for each in cases:
        overlap = each.overlap
        table.add_row(
            each.name,
            f"{overlap.product_us:,.1f}",
            f"{overlap.workers_us:,.1f}",
            f"{overlap.overlap_us:,.1f}",
            f"{overlap.num_overlapping}/{overlap.num_ops}",
        )
    return table


def _verdict_lines(result: AssistResult) -> Iterator[Text]:
    """What keeps the benchmark from passing, one line each; one line if nothing does."""
    for case in result.cases:
        if case.wrong is not None:
            yield cannot_tell(f"'{case.name}' {case.wrong}")
        elif verdict_on(case) is Verdict.MISSED:
            for limit in case.limits():
                if not limit.is_met:
                    yield missed(f"'{case.name}': {limit.sentence}")
    if result.verdict is Verdict.MET:
        yield all_met()
