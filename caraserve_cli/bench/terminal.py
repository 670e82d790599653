"""A benchmark's result as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from caraserve_cli.bench.benchmark import BenchFacts, BenchResult
from caraserve_cli.bench.comparison import Comparison, Ratio, Verdict


def render(result: BenchResult) -> RenderableType:
    """The circumstances, a table of the systems, a table of the ratios, and the verdict's line."""
    comparison = result.comparison
    return Group(
        _circumstances(result.facts),
        "",
        _systems_table(comparison),
        "",
        _ratios_table(comparison),
        "",
        *_verdict_lines(comparison),
    )


def _circumstances(facts: BenchFacts) -> Text:
    return Text(
        f"{facts.recipe}: {facts.description}\n"
        f"{facts.num_requests} requests, {facts.num_adapters} adapters, "
        f"{facts.prompt_tokens:,} prompt tokens, batches of {facts.batch_size}\n"
        f"{facts.repeats} interleaved repeats, warm-ups: {facts.warmups}\n"
        f"{facts.device}, {facts.dtype}, {facts.versions_words}{facts.commit_words}\n"
        f"load average before: {facts.load_average:.1f} on {facts.num_cores} cores"
    )


def _systems_table(comparison: Comparison) -> Table:
    table = plain_table("system", "tokens/s", "lowest to highest", "seconds", "tokens", "equal answers")
    for each in comparison.systems:
        speed = each.tokens_per_s
        table.add_row(
            each.name,
            f"{speed.median:,.0f}",
            f"{speed.lowest:,.0f} to {speed.highest:,.0f}",
            f"{each.seconds.median:.2f}",
            f"{each.output_tokens:,}",
            f"{each.equal_answers}/{comparison.num_requests}",
        )
    return table


def _ratios_table(comparison: Comparison) -> Table:
    table = plain_table("tokens/s", "ratio", "lowest to highest", "required", "")
    for each in comparison.ratios:
        table.add_row(
            f"{each.ours} / {each.over}",
            f"{each.ratio.median:.2f}x",
            f"{each.ratio.lowest:.2f}x to {each.ratio.highest:.2f}x",
            "-" if each.at_least is None else f"{each.at_least:g}x",
            _met_or_missed(each, comparison.verdict),
        )
    return table


def _met_or_missed(ratio: Ratio, verdict: Verdict) -> Text:
    if ratio.at_least is None:
        return Text("")
    if verdict is Verdict.CANNOT_TELL:
        return Text("cannot tell", style="yellow")
    return Text("met", style="green") if ratio.is_met else Text("missed", style="red")


def _verdict_lines(comparison: Comparison) -> Iterator[Text]:
    """What keeps the benchmark from passing, one line each; one line if nothing does."""
    for each in comparison.disagreeing:
        num_other = comparison.num_requests - each.equal_answers
        yield Text(
            f"Cannot tell: {num_other} of {comparison.num_requests} answers of {each.name} are not those of "
            f"{comparison.reference}, so the work is not the same.",
            style="yellow",
        )
    if comparison.verdict is Verdict.MISSED:
        for ratio in (each for each in comparison.ratios if not each.is_met):
            yield Text(
                f"Missed: {ratio.ours} gives {ratio.ratio.median:.2f}x the output tokens a second of "
                f"{ratio.over}; the recipe requires {ratio.at_least:g}x.",
                style="red",
            )
    elif comparison.verdict is Verdict.MET:
        is_required = any(each.at_least is not None for each in comparison.ratios)
        met = " and every requirement is met" if is_required else "; nothing is required"
        yield Text(f"All answers are equal{met}.", style="green")


def plain_table(first: str, *others: str) -> Table:
    """A table without lines: the first column is text, the others are numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
