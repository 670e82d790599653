"""What a paper reports beside what was measured here, as text for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from caraserve_cli.bench.paper import COMPARISON_HEADS, PaperComparison
from caraserve_cli.bench.terminal import plain_table


def render_paper(comparison: PaperComparison) -> RenderableType:
    """Where it is reported, a table of both sides, and what differs."""
    paper = comparison.paper
    table = plain_table(*COMPARISON_HEADS)
    for column in table.columns[:3]:
        # In a narrow terminal text takes another line, and not the figures' room.
        column.justify, column.no_wrap, column.overflow = "left", False, "fold"
    for row in comparison.rows:
        table.add_row(*row)
    return Group(
        Text(paper.heading),
        table,
        *(Text(f"Not measured here: {figure}", style="yellow") for figure in comparison.missing),
        Text("What differs:"),
        *(Text(f"- {difference}") for difference in paper.differences),
    )
