"""A comparison of two reports, for people at a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caraserve_cli.report.comparison import OTHER_WORK, Change, Comparison
from caraserve_cli.report.html import format_number

MAX_ADAPTERS_SHOWN = 20
_STYLES = {"better": "green", "worse": "red", OTHER_WORK: "yellow"}


def render_comparison(comparison: Comparison, console: Console) -> None:
    """Print in what the work differs, the settings that do, every metric with what became of it, adapters."""
    if comparison.work:
        told = "; ".join(
            f"{name} {_shown(before)}, then {_shown(after)}" for name, before, after in comparison.work
        )
        line = f"Other work: {told}. Figures with this mark cannot be compared."
        console.print(Text(line, style="yellow"), soft_wrap=True)
    if comparison.settings:
        table = _table("setting", "first", "second")
        for name, before, after in comparison.settings:
            table.add_row(Text(name), Text(_shown(before)), Text(_shown(after)))
        console.print(table)
    else:
        console.print("Same configuration and machine.")
    table = _table("metric", "first", "second", "ratio", "")
    for change in comparison.metrics:
        table.add_row(
            change.name, _told(change.before), _told(change.after), _ratio(change), _verdict(change)
        )
    console.print(table)
    _render_adapters(comparison, console)
    console.print("One run each: whether a difference is chance they cannot tell; `caraserve bench` can.")


def _render_adapters(comparison: Comparison, console: Console) -> None:
    if not comparison.adapters:
        return
    shown = comparison.adapters[:MAX_ADAPTERS_SHOWN]
    table = _table("adapter", *(_heading(change) for change in shown[0][1]))
    for name, changes in shown:
        cells = [
            Text(f"{_told(c.before)} → {_told(c.after)}", style=_STYLES.get(c.verdict, "")) for c in changes
        ]
        table.add_row(Text(name), *cells)
    console.print(table)
    if hidden := len(comparison.adapters) - len(shown):
        console.print(f"The {len(shown)} busiest; {hidden:,} more in the report.json of each.")


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first)
    for other in others:
        table.add_column(other, justify="right" if first != "setting" else "left", overflow="fold")
    return table


def _heading(change: Change) -> str:
    return change.name if change.is_same_work else f"{change.name} ({OTHER_WORK})"


def _shown(value: object) -> str:
    """A setting, for people."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_quoted(each) if isinstance(each, str) else _shown(each) for each in value) or "-"
    text = str(value)
    return text if text.isprintable() else _quoted(text)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _told(value: float | None) -> str:
    return format_number(value)


def _ratio(change: Change) -> str:
    return "-" if change.ratio is None else f"{change.ratio:.2f}"


def _verdict(change: Change) -> Text:
    return Text(change.verdict, style=_STYLES.get(change.verdict, ""))
