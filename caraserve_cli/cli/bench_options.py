"""The options of `caraserve bench`, each once: name, type, help."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

_file = partial(typer.Option, metavar="FILE")

Recipe = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="Name of an embedded recipe, or a .toml file. Default: quick.",
        show_default=False,
    ),
]
ListRecipes = Annotated[bool, typer.Option("--list", help="List the embedded recipes and measure nothing.")]
Small = Annotated[
    bool,
    typer.Option(
        "--small",
        help="Cut the recipe down to seconds on this CPU, with the embedded sample: does it run? "
        "Judges no speed.",
    ),
]
Record = Annotated[
    Path | None,
    _file(help="Measure again and again, and keep it as a baseline."),
]
Baseline = Annotated[Path | None, _file(help="Compare with what --record wrote.")]
BudgetS = Annotated[
    float | None,
    typer.Option(
        "--budget-s",
        metavar="SECONDS",
        min=1,
        help="With --record, --baseline or --try-gate: begin no run that would end later. Default: 120.",
        show_default=False,
    ),
]
Profile = Annotated[
    Path | None,
    _file(help="Measure nothing: compute on virtual time what this machine profile says (kind slo)."),
]
TryGate = Annotated[
    int | None,
    typer.Option(
        "--try-gate",
        metavar="TRIES",
        min=1,
        help="Record, and compare with that, so many times: does the gate keep its word here? Takes two "
        "budgets a try.",
        show_default=False,
    ),
]
SlowDecode = Annotated[
    float | None,
    typer.Option(
        "--slow-decode",
        metavar="FACTOR",
        min=1,
        help="What is measured, or with --try-gate compared, decodes more slowly on purpose: 1.1 for 10%.",
        show_default=False,
    ),
]
JsonFile = Annotated[Path | None, _file("--json", help="Write the result as JSON too.")]
MarkdownFile = Annotated[
    Path | None,
    _file("--markdown", help="Write it as Markdown, for the summary of a CI job."),
]
HtmlFile = Annotated[Path | None, _file("--html", help="Write it as one HTML page with plots.")]
JunitFile = Annotated[Path | None, _file("--junit", help="With --baseline: write it as JUnit XML.")]
GithubFile = Annotated[
    Path | None,
    typer.Option(
        "--github-benchmark",
        metavar="NAME.json",
        help="Write NAME.smaller.json and NAME.bigger.json for github-action-benchmark.",
    ),
]
