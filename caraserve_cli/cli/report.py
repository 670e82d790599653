"""`caraserve report`: a run's report again, or two runs beside each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caraserve_cli.errors import ExitStatus


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.", show_default=False)],
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN_DIR]", help="A second run: what got better or worse.", show_default=False
        ),
    ] = None,
) -> int:
    """Print a run's summary and write its report.html again; or, with two, compare the second with the first:
    what got better or worse, by metric and by adapter, below the differences of their work (whose figures are
    then marked) and of their configurations.
    """
    from rich.console import Console

    from caraserve_cli.report.comparison import compare_reports
    from caraserve_cli.report.comparison_terminal import render_comparison
    from caraserve_cli.report.html import write_html
    from caraserve_cli.report.report_file import read_report
    from caraserve_cli.report.terminal import render_summary

    first = read_report(run)
    console = Console()
    if other is None:
        render_summary(first, console, [write_html(first, run)])
    else:
        render_comparison(compare_reports(first, read_report(other)), console)
    return ExitStatus.OK
