"""Metrics, and what the regression gate says of them, as Markdown for the summary page of a CI job."""

from __future__ import annotations

from collections.abc import Sequence

from caraserve_cli.bench.gate import GateResult
from caraserve_cli.bench.gate_words import (
    allowed,
    extremes_of,
    figure,
    notes,
    verdict_sentence,
    worse_of,
)
from caraserve_cli.bench.judged_metric import GateVerdict
from caraserve_cli.bench.paper import COMPARISON_HEADS, PaperComparison
from caraserve_cli.bench.recording import Recording

_MARKS = {GateVerdict.HELD: "✅", GateVerdict.REGRESSED: "❌", GateVerdict.CANNOT_TELL: "⚪"}


def recording_markdown(
    recording: Recording, remarks: Sequence[str] = (), comparison: PaperComparison | None = None
) -> str:
    """A heading, remarks, what a paper reports beside ours, and a table of all metrics."""
    rows = [
        (metric.name, figure(metric.median, metric.unit), extremes_of(metric), str(len(metric.values)))
        for metric in recording.metrics
    ]
    lines = [
        f"## caraserve bench {_escaped(recording.recipe)}",
        "",
        *(line for remark in remarks for line in (_escaped(remark), "")),
        *(_paper_lines(comparison) if comparison else ()),
        *_table(("metric", "median", "lowest to highest", "values"), rows),
        "",
        _where(recording),
    ]
    return "\n".join(lines) + "\n"


def gate_markdown(result: GateResult) -> str:
    """A heading, the verdict, a table of the judged metrics, notes."""
    rows = [
        (
            each.metric.name,
            figure(each.before.median, each.before.unit),
            "-" if each.now is None else figure(each.now.median, each.now.unit),
            worse_of(each),
            allowed(each.metric),
            f"{_MARKS[each.verdict]} {each.verdict}",
        )
        for each in result.judged
    ]
    lines = [
        f"## {_MARKS[result.verdict]} caraserve bench {_escaped(result.recording.recipe)}: {result.verdict}",
        "",
        _escaped(verdict_sentence(result)),
        "",
        *_table(("metric", "before", "now", "worse by (95%)", "allowed", ""), rows),
        "",
        *(f"- {_escaped(note)}" for note in notes(result)),
        "",
        _where(result.recording),
    ]
    return "\n".join(lines) + "\n"


def _paper_lines(comparison: PaperComparison) -> list[str]:
    paper = comparison.paper
    return [
        _escaped(paper.heading),
        "",
        *_table(COMPARISON_HEADS, comparison.rows, num_texts=3),
        "",
        "What differs:",
        "",
        *(f"- {_escaped(difference)}" for difference in paper.differences),
        "",
    ]


def _where(recording: Recording) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in recording.fingerprint.items() if value)
    commit = f", commit {recording.commit[:10]}" if recording.commit else ""
    return _escaped(f"{recording.recorded_at}{commit}; {facts}")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, num_texts: int = 1) -> list[str]:
    """The first columns are texts, the others figures."""
    marks = ["---" if index < num_texts else "---:" for index in range(len(heads))]
    return [_row(heads), _row(marks), *(_row([_escaped(cell) for cell in row]) for row in rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Names of cases are the user's; none of their characters is to be Markdown or HTML."""
    for mark in "\\|*`<[]@":
        text = text.replace(mark, f"\\{mark}")
    # Backslashes end neither entities nor lines.
    return " ".join(text.replace("&", "&amp;").split())
