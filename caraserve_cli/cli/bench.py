"""`caraserve bench`: parse, measure, print, exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caraserve_cli.cli.bench_files import BenchFiles
from caraserve_cli.errors import ExitStatus, OptionError
from caraserve_cli.job.stop_request import StopRequest

# Ten runs of recipes/quick.toml, and a few more on a quiet machine.
_DEFAULT_BUDGET_S = 120.0
_GATE_COLUMNS = 140


def bench(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="Name of an embedded recipe, or a .toml file. Default: quick.",
            show_default=False,
        ),
    ] = None,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="List the embedded recipes and measure nothing.")
    ] = False,
    record: Annotated[
        Path | None,
        typer.Option("--record", metavar="FILE", help="Measure again and again, and keep it as a baseline."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="FILE", help="Compare with what --record wrote."),
    ] = None,
    budget_s: Annotated[
        float | None,
        typer.Option(
            "--budget-s",
            metavar="SECONDS",
            min=1,
            help="With --record or --baseline: begin no run that would end later. Default: 120.",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON too.")
    ] = None,
    markdown_file: Annotated[
        Path | None,
        typer.Option("--markdown", metavar="FILE", help="Write it as Markdown, for the summary of a CI job."),
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as one HTML page with plots.")
    ] = None,
    junit_file: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE", help="With --baseline: write it as JUnit XML."),
    ] = None,
    github_file: Annotated[
        Path | None,
        typer.Option(
            "--github-benchmark",
            metavar="NAME.json",
            help="Write NAME.smaller.json and NAME.bigger.json for github-action-benchmark.",
        ),
    ] = None,
) -> None:
    """Run a recipe: measure systems side by side on the same requests, check that their answers are equal;
    or measure what the engine, or a part of it, gives of what the device could.

    With --baseline, run it again and again, and say whether anything became worse than it was.

    Exit status: 0 requirements met, or held; 4 missed, or regressed; 5 the work was not done or not the same,
    or the baseline cannot tell.
    """
    files = BenchFiles(
        record=record,
        json=json_file,
        markdown=markdown_file,
        html=html_file,
        junit=junit_file,
        github_benchmark=github_file,
    )
    if list_recipes:
        if recipe is not None or baseline is not None or budget_s is not None or files.given:
            raise OptionError(
                "--list: it measures nothing; leave out RECIPE and --json and what else there is, or --list"
            )
        raise typer.Exit(_list())
    is_gated = record is not None or baseline is not None
    if not is_gated and budget_s is not None:
        raise OptionError("--budget-s: without --record or --baseline a recipe is run once; leave it out")
    if baseline is None and junit_file is not None:
        raise OptionError("--junit: it tells what a comparison found; give --baseline too, or leave it out")
    files.check_writable()
    stop: StopRequest = context.obj
    stop.goal = "all was measured"
    if is_gated:
        raise typer.Exit(_run_gated(recipe, baseline, budget_s or _DEFAULT_BUDGET_S, files))
    raise typer.Exit(_run(recipe, files, stop))


def _list() -> int:
    from caraserve_cli.bench.catalogue import embedded_recipes
    from caraserve_cli.bench.recipe_kinds import load_any_recipe

    recipes = [load_any_recipe(path) for path in embedded_recipes()]
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        typer.echo(f"{recipe.name:<{width}}  {recipe.description}")
    return ExitStatus.OK


def _run(name: str | None, files: BenchFiles, stop: StopRequest) -> int:
    from rich.console import Console

    from caraserve_cli.bench.catalogue import DEFAULT_RECIPE, find_recipe
    from caraserve_cli.bench.recipe_kinds import load_any_recipe, measure_recipe

    path = find_recipe(DEFAULT_RECIPE if name is None else name)
    recipe = load_any_recipe(path)

    def tell(measured: str, repeat: int, repeats: int, gave: str) -> None:
        stop.check()
        _tell(measured, repeat, repeats, gave)

    stop.check()
    measured = measure_recipe(recipe, tell)
    files.write_result(path, measured.result.as_json(), measured.beside)
    Console(soft_wrap=True).print(measured.rendered)
    return measured.result.verdict.exit_status


def _run_gated(name: str | None, baseline_file: Path | None, budget_s: float, files: BenchFiles) -> int:
    from rich.console import Console

    from caraserve_cli.bench.catalogue import DEFAULT_RECIPE, find_recipe
    from caraserve_cli.bench.gate_terminal import render_gate
    from caraserve_cli.bench.gated_run import run_gated
    from caraserve_cli.bench.recipe_kinds import load_any_recipe
    from caraserve_cli.bench.recording import read_recording

    path = find_recipe(DEFAULT_RECIPE if name is None else name)
    recipe = load_any_recipe(path)
    baseline = None if baseline_file is None else read_recording(baseline_file)
    if baseline is not None and baseline.recipe != recipe.name:
        raise OptionError(
            f"--baseline: '{baseline_file}' was recorded with recipe '{baseline.recipe}', not '{recipe.name}'"
        )
    done = run_gated(path, baseline, budget_s, _tell_round)
    files.write_gated(done.recording, done.gate)
    typer.echo(done.last.printed)
    if done.gate is None:
        typer.echo(f"Recorded {done.recording.num_rounds} runs: {files.record}")
        return ExitStatus.OK
    # The log of a CI job counts as 80 columns; a long line there is better than names and figures cut short.
    width = max(Console().width, _GATE_COLUMNS)
    Console(soft_wrap=True, width=width).print(render_gate(done.gate))
    return done.gate.verdict.exit_status


def _tell_round(number: int, is_settled: bool) -> None:
    typer.echo(f"run {number}: {'known well enough' if is_settled else 'not narrow yet'}", err=True)


def _tell(measured: str, repeat: int, repeats: int, gave: str) -> None:
    """One line a run on stderr, so that a long benchmark is seen to move."""
    turn = f"repeat {repeat}/{repeats}" if repeat else ("warm-up" if repeats else "measured")
    typer.echo(f"{turn}  {measured}: {gave}", err=True)
