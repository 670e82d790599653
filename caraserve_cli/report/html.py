"""report.html: a report for people, in one file that opens offline.

Knows the schema of report.json and nothing of how it came about. What rows and adapters are called is not
trusted: the template escapes all of it, and the page's policy lets nothing be loaded from anywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from caraserve_cli.errors import OutputError
from caraserve_cli.report.terminal import format_duration, format_share

HTML_NAME = "report.html"
# Rows of the table of adapters; the busiest. All are in report.json.
MAX_ADAPTERS_SHOWN = 300

Json = Mapping[str, Any]
_TIMES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "latency_ms": "Latency", "queue_ms": "Queue"}


def render_html(report: Json) -> str:
    """The page of a report as `run_report.build_report` makes it, or as read from report.json."""
    adapters = sorted(report["by_adapter"], key=lambda entry: -entry["answered"])
    plots = {
        "histograms": {name: report["histograms"][name] for name in _TIMES},
        "slack": report["deadline_slack"]["histogram_share_left"],
        "timeline": report["timeline"],
    }
    return _template().render(
        report=report,
        adapters=adapters[:MAX_ADAPTERS_SHOWN],
        num_adapters=len(adapters),
        times=_TIMES,
        busy_share=functools.partial(_share_of, report["run"]["duration_s"] * 1000.0),
        plots=plots,
        assets=_assets(),
    )


def write_html(report: Json, folder: Path) -> Path:
    """Write `folder`/report.html whole or not at all, and return its path.

    Raises:
        OutputError: the file cannot be written.
    """
    path, draft = folder / HTML_NAME, folder / f".{HTML_NAME}.partial"
    try:
        draft.write_text(render_html(report), encoding="utf-8", errors="backslashreplace")
        draft.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; make room or permit it, then `caraserve report {folder}`"
        ) from error
    return path


def format_number(value: float | None) -> str:
    """Three digits that matter, thousands set apart; a dash for what is not defined."""
    if value is None:
        return "-"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


def _share_of(whole: float, part: float) -> float | None:
    return min(part / whole, 1.0) if whole else None


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("caraserve_cli.report", "assets"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=format_number, share=format_share, duration=format_duration)
    return environment.get_template("report.html.j2")


@functools.cache
def _assets() -> dict[str, str]:
    folder = files("caraserve_cli.report") / "assets"
    names = {
        "plot_css": "uplot/uPlot.min.css",
        "plot_js": "uplot/uPlot.iife.min.js",
        "css": "report.css",
        "js": "report.js",
    }
    return {key: (folder / name).read_text(encoding="utf-8") for key, name in names.items()}
