"""The result of a throughput benchmark as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.terminal import plain_table
from caraserve_cli.bench.throughput_result import CaseResult, ThroughputFacts, ThroughputResult

_VERDICTS = {
    Verdict.MET: ("met", "green"),
    Verdict.MISSED: ("missed", "red"),
    Verdict.CANNOT_TELL: ("cannot tell", "yellow"),
}


def render_throughput(result: ThroughputResult) -> RenderableType:
    """The circumstances, a table of what is required, a table of what it is made of, the verdict's lines."""
    return Group(
        _circumstances(result.facts),
        "",
        _speed_table(result.cases),
        "",
        _work_table(result.cases),
        "",
        *_verdict_lines(result),
    )


def _circumstances(facts: ThroughputFacts) -> Text:
    versions = ", ".join(f"{name} {number}" for name, number in facts.versions.items())
    commit = f", commit {facts.commit}" if facts.commit else ""
    return Text(
        f"{facts.recipe}: {facts.description}\n"
        f"{facts.base} with {facts.weights} weights, {facts.prompt_tokens} prompt and {facts.output_tokens} "
        "output tokens a request\n"
        f"{facts.repeats} interleaved repeats, warm-ups: {facts.warmups}\n"
        f"{facts.device}, {facts.dtype}, {versions}{commit}\n"
        f"load average before: {facts.load_average:.1f} on {facts.num_cores} cores\n"
        f"copy {facts.copy_bytes_per_s / 1e9:,.0f} GB/s, matrix product "
        f"{facts.product_flops_per_s / 1e12:,.3g} TFLOP/s\n"
        f"first replica ready after {facts.startup_s:.1f} s, {facts.num_adapters} adapters made in "
        f"{facts.adapters_s:.1f} s"
    )


def _speed_table(cases: Sequence[CaseResult]) -> Table:
    table = plain_table("output tokens/s", "median", "lowest to highest", "required", "")
    for each in cases:
        speed, at_least = each.tokens_per_s, each.case.at_least
        table.add_row(
            each.case.name,
            f"{speed.median:,.0f}",
            f"{speed.lowest:,.0f} to {speed.highest:,.0f}",
            "-" if at_least is None else f"{at_least:,.0f}",
            _verdict(each),
        )
    return table


def _verdict(case: CaseResult) -> Text:
    if case.verdict is Verdict.MET and case.case.at_least is None:
        return Text("")
    words, style = _VERDICTS[case.verdict]
    return Text(words, style=style)


def _work_table(cases: Sequence[CaseResult]) -> Table:
    table = plain_table("", "floor", "of floor", "decode step", "loads", "running")
    for each in cases:
        step_ms = each.decode_step_ms
        table.add_row(
            each.case.name,
            f"{each.floor_tokens_per_s:,.0f}",
            f"{each.of_floor:.0%}",
            "-" if step_ms is None else f"{step_ms.median:.2f} ms",
            f"{max(each.num_adapter_loads):,}",
            f"{max(each.peak_running):,}",
        )
    return table


def _verdict_lines(result: ThroughputResult) -> Iterator[Text]:
    """What keeps the benchmark from passing, one line each; one line if nothing does."""
    for each in result.cases:
        name, at_least = each.case.name, each.case.at_least
        for undone in each.undone:
            yield Text(f"Cannot tell: in '{name}' {undone}.", style="yellow")
        if each.verdict is Verdict.MISSED:
            yield Text(
                f"Missed: '{name}' gives {each.tokens_per_s.median:,.0f} output tokens a second; the recipe "
                f"requires {at_least:,.0f}.",
                style="red",
            )
    if result.verdict is Verdict.MET:
        yield Text("All work was done and every requirement is met.", style="green")
