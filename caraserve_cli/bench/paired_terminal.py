"""The result of a benchmark of pairs as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from caraserve_cli.bench.engine_terminal import cannot_tell, extremes
from caraserve_cli.bench.paired_result import PairedFacts, PairedResult, Pass
from caraserve_cli.bench.terminal import plain_table


def summary(done: Pass) -> str:
    """One pass in a few words."""
    ours, theirs = statistics.median(done.ours_ms[1:]), statistics.median(done.theirs_ms[1:])
    return f"{ours:.1f} ms a decoding step, the reference {theirs:.1f} ms"


def render_paired(result: PairedResult) -> RenderableType:
    """The circumstances, a table of both sides, a table of our figures, and what went wrong."""
    ratios = plain_table("times as fast", "as", "step", "lowest to highest", "prefill", "p95 step")
    figures = plain_table("ms", "step", "lowest to highest", "p95 step", "TTFT", "its step", "tokens/s")
    for each in result.cases:
        ratios.add_row(
            each.name,
            each.reference,
            f"{1 / each.step_over_reference.median:.2f}x",
            f"{1 / each.step_over_reference.highest:.2f}x to {1 / each.step_over_reference.lowest:.2f}x",
            f"{1 / each.prefill_over_reference.median:.2f}x",
            f"{1 / each.p95_step_over_reference.median:.2f}x",
        )
        figures.add_row(
            each.name,
            f"{each.step_ms.median:.1f}",
            extremes(each.step_ms, 1),
            f"{each.p95_step_ms.median:.1f}",
            f"{each.ttft_ms.median:.0f}",
            f"{each.reference_step_ms.median:.1f}",
            f"{each.tokens_per_s.median:,.0f}",
        )
    return Group(_circumstances(result.facts), "", ratios, "", figures, "", *_last_lines(result))


def _circumstances(facts: PairedFacts) -> Text:
    return Text(
        f"{facts.recipe}: {facts.description}\n"
        f"{facts.num_adapters} adapters, {facts.prompt_tokens:,} prompt tokens, answers of "
        f"{facts.output_tokens} tokens, {facts.repeats} passes, step by step in turns\n"
        f"{facts.device}, {facts.dtype}, {facts.versions_words}{facts.commit_words}\n"
        f"load average before: {facts.load_average:.1f} on {facts.num_cores} cores"
    )


def _last_lines(result: PairedResult) -> Iterator[Text]:
    if (factor := result.facts.slow_decode) is not None:
        yield Text(f"Our decoding steps were slowed on purpose, by a factor of {factor:g}.", style="yellow")
    for each in result.cases:
        for undone in each.undone:
            yield cannot_tell(f"in '{each.name}' {undone}")
    for name, why in result.skipped.items():
        yield Text(f"Not measured: '{name}': {why}.", style="yellow")
    if result.cases and not any(each.undone for each in result.cases):
        yield Text("All answers are those of the reference, token for token.", style="green")
