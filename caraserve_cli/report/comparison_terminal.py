"""A comparison of two reports, for people at a terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from caraserve_cli.report.comparison import ONE_SESSION, OTHER_WORK, Change, Comparison, LastSession
from caraserve_cli.report.html import format_number
from caraserve_cli.report.terminal import format_share

MAX_ADAPTERS_SHOWN = 20
_STYLES = {"better": "green", "worse": "red", OTHER_WORK: "yellow", ONE_SESSION: "yellow"}

_CLOSING = "One run each tells little: repeat both, or measure a recipe with `caraserve bench --baseline`."


def render_comparison(comparison: Comparison, console: Console) -> None:
    """Print in what the work differs, which run was resumed, the settings that differ, every metric with what
    became of it, adapters.
    """
    if comparison.work:
        told = "; ".join(
            f"{name} {_shown(before)}, then {_shown(after)}" for name, before, after in comparison.work
        )
        line = f"Other work: {told}. Figures with this mark cannot be compared."
        console.print(Text(line, style="yellow"), soft_wrap=True)
    if any(comparison.resumed):
        console.print(Text(_resumed_line(*comparison.resumed), style="yellow"), soft_wrap=True)
    if comparison.settings:
        table = _table("setting", "first", "second")
        for name, before, after in comparison.settings:
            table.add_row(Text(name), Text(_shown(before)), Text(_shown(after)))
        console.print("", table)
    else:
        console.print("Same configuration and machine.")
    table = _table("metric", "first", "second", "ratio", "")
    for change in comparison.metrics:
        before, after = _values(change)
        table.add_row(change.name, before, after, _ratio(change), _verdict(change))
    console.print("", table)
    _render_adapters(comparison, console)
    console.print()
    console.print(Text(_CLOSING), soft_wrap=True)


def _resumed_line(first: LastSession | None, second: LastSession | None) -> str:
    if first and second:
        which = "both runs were resumed, and their rates, preemptions and cold starts are those of their last"
    else:
        which = (
            f"the {'first' if first else 'second'} run was resumed, and its rates, preemptions and cold "
            "starts are those of its last"
        )
    answered = ", then ".join(f"{last.answered:,} of {last.of:,}" for last in (first, second) if last)
    return f"One session: {which} ({answered} answered). Figures with this mark cannot be compared."


def _render_adapters(comparison: Comparison, console: Console) -> None:
    if not comparison.adapters:
        return
    shown = comparison.adapters[:MAX_ADAPTERS_SHOWN]
    table = _table("adapter", *(_heading(change) for change in shown[0][1]))
    # What numbers have no room for continues on the next line; names do only where they are very long.
    longest = max(cell_len(name) for name in ("adapter", *(name for name, _ in shown)))
    table.columns[0].width = min(longest, console.width // 3)
    for name, changes in shown:
        cells = [
            Text(" → ".join(_values(change)), style=_STYLES.get(change.verdict, "")) for change in changes
        ]
        table.add_row(Text(name), *cells)
    console.print("", table)
    if hidden := len(comparison.adapters) - len(shown):
        console.print(f"The {len(shown)} busiest; {hidden:,} more in the report.json of each.")


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    # Long names continue on the next line: a name cut short could be another adapter's.
    table.add_column(first, overflow="fold")
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


def _values(change: Change) -> tuple[str, str]:
    told = format_share if change.is_share else format_number
    return told(change.before), told(change.after)


def _ratio(change: Change) -> str:
    return "-" if change.ratio is None else f"{change.ratio:.2f}"


def _verdict(change: Change) -> Text:
    return Text(change.verdict, style=_STYLES.get(change.verdict, ""))
