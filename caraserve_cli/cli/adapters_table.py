"""A list of adapters as text and as JSON. Knows summaries, and nothing of how they came about.

Plain columns, not rich's tables, which take seconds for thousands of rows and cut what is long: every line
can be searched with grep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import orjson

from caraserve_cli.adapters.summary import AdapterSummary
from caraserve_cli.core import LORA_MODULES

_UNKNOWN = "-"
_HEADINGS = ("adapter", "rank", "alpha", "modules", "dtype", "size")
_IS_RIGHT_ALIGNED = (False, True, True, False, False, True)
_GAP = "  "


def render_table(summaries: Sequence[AdapterSummary], *, with_base: bool) -> Iterator[str]:
    """The lines of a table, its headings first. The last column says whether an adapter fits the base, or can
    be served at all where no base was named: `yes`, or why not."""
    rows = [_HEADINGS, *map(_cells, summaries)]
    heading = "fits the base" if with_base else "can be served"
    verdicts = [heading, *("yes" if one.problem is None else _one_line(one.problem) for one in summaries)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, verdict in zip(rows, verdicts, strict=True):
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, _IS_RIGHT_ALIGNED, strict=True)
        ]
        yield _GAP.join([*padded, verdict]).rstrip()


def as_json_array(summaries: Sequence[AdapterSummary]) -> bytes:
    """All that is known of each: a problem is null where it can be served, ranks where no header tells."""
    rows = [
        {
            "name": _printable(one.name),
            "folder": _printable(str(one.folder)),
            "lora_ranks": one.lora_ranks,
            "lora_alpha": one.lora_alpha,
            "lora_alphas": one.lora_alphas,
            "modules": one.modules,
            "dtypes": one.dtypes,
            "file_bytes": one.file_bytes,
            "problem": None if one.problem is None else _printable(one.problem),
        }
        for one in summaries
    ]
    return orjson.dumps(rows, option=orjson.OPT_INDENT_2)


def _cells(summary: AdapterSummary) -> tuple[str, ...]:
    alpha = summary.lora_alpha
    return (
        _one_line(summary.name),
        _range(summary.lora_ranks),
        _range(summary.lora_alphas or (None if alpha is None else (alpha, alpha))),
        _modules(summary.modules),
        ", ".join(summary.dtypes) or _UNKNOWN,
        _size(summary.file_bytes),
    )


def _range(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return _UNKNOWN
    smallest, largest = ends
    return f"{largest:g}" if smallest == largest else f"{smallest:g}-{largest:g}"


def _modules(modules: Sequence[str]) -> str:
    """`q, v`; `all` for all seven."""
    if len(modules) == len(LORA_MODULES):
        return "all"
    return ", ".join(module.removesuffix("_proj") for module in modules) or _UNKNOWN


def _size(num_bytes: int) -> str:
    if not num_bytes:
        return _UNKNOWN
    size, unit = float(num_bytes), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"


def _one_line(text: str) -> str:
    """Names of folders may hold line ends and bytes that are no UTF-8."""
    return _printable("".join(part if part.isprintable() else repr(part)[1:-1] for part in text))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
