"""The regression gate's result as text for a terminal. Knows no measuring and no files."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from caraserve_cli.bench.gate import GateResult
from caraserve_cli.bench.gate_words import allowed, figure, notes, verdict_sentence, worse_of
from caraserve_cli.bench.judged_metric import GateVerdict
from caraserve_cli.bench.terminal import plain_table

_STYLES = {
    GateVerdict.HELD: "green",
    GateVerdict.REGRESSED: "red",
    GateVerdict.CANNOT_TELL: "yellow",
}


def render_gate(result: GateResult) -> RenderableType:
    """A table of all judged metrics, those that decide first, then notes, then the verdict."""
    table = plain_table("metric", "before", "now", "worse by (95%)", "allowed", "")
    deciding = [each.metric.name for each in result.deciding]
    for each in sorted(result.judged, key=lambda judged: judged.metric.name not in deciding):
        table.add_row(
            Text(each.metric.name),  # brackets in it are no styles
            figure(each.before.median, each.before.unit),
            "-" if each.now is None else figure(each.now.median, each.now.unit),
            worse_of(each),
            allowed(each.metric),
            Text(each.verdict, style=_STYLES[each.verdict]),
        )
    return Group(
        table,
        "",
        *(Text(note, style="dim") for note in notes(result)),
        Text(verdict_sentence(result), style=_STYLES[result.verdict]),
    )
