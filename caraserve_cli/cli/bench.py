"""`caraserve bench`: parse, measure, print, exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from caraserve_cli.errors import ExitStatus, OptionError, OutputError
from caraserve_cli.job.stop_request import StopRequest


def bench(
    context: typer.Context,
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="Name of an embedded recipe, or a .toml file. Default: peft.",
            show_default=False,
        ),
    ] = None,
    list_recipes: Annotated[
        bool, typer.Option("--list", help="List the embedded recipes and measure nothing.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON too.")
    ] = None,
) -> None:
    """Run a recipe: measure systems side by side on the same requests, check that their answers are equal;
    or measure what the engine, or a part of it, gives of what the device could.

    Exit status: 0 requirements met, 4 missed, 5 the work was not done or not the same.
    """
    if list_recipes and (recipe is not None or json_file is not None):
        raise OptionError("--list: it measures nothing; leave out RECIPE and --json, or --list")
    raise typer.Exit(_list() if list_recipes else _run(recipe, json_file, context.obj))


def _list() -> int:
    from caraserve_cli.bench.catalogue import embedded_recipes
    from caraserve_cli.bench.recipe_kinds import load_any_recipe

    recipes = [load_any_recipe(path) for path in embedded_recipes()]
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        typer.echo(f"{recipe.name:<{width}}  {recipe.description}")
    return ExitStatus.OK


def _run(name: str | None, json_file: Path | None, stop: StopRequest) -> int:
    from rich.console import Console

    from caraserve_cli.bench.catalogue import DEFAULT_RECIPE, find_recipe
    from caraserve_cli.bench.facts import write_json, write_text
    from caraserve_cli.bench.recipe_kinds import load_any_recipe, measure_recipe

    recipe = load_any_recipe(find_recipe(DEFAULT_RECIPE if name is None else name))
    if json_file is not None:
        check_writable(json_file)
    stop.goal = "all was measured"

    def tell(measured: str, repeat: int, repeats: int, gave: str) -> None:
        stop.check()
        _tell(measured, repeat, repeats, gave)

    stop.check()
    measured = measure_recipe(recipe, tell)
    if json_file is not None:
        write_json(json_file, measured.result.as_json())
        for suffix, content in measured.beside.items():
            if isinstance(content, str):
                write_text(json_file.with_suffix(suffix), content)
            else:
                write_json(json_file.with_suffix(suffix), content)
    Console(soft_wrap=True).print(measured.rendered)
    return measured.result.verdict.exit_status


def check_writable(path: Path) -> None:
    """Refuse before the measurement what would fail after it."""
    if path.is_dir() or not path.parent.is_dir():
        reason = "it is a folder" if path.is_dir() else "its folder does not exist"
        raise OutputError(f"--json: '{path}' cannot be written: {reason}")


def _tell(measured: str, repeat: int, repeats: int, gave: str) -> None:
    """One line a run on stderr, so that a long benchmark is seen to move."""
    turn = f"repeat {repeat}/{repeats}" if repeat else ("warm-up" if repeats else "measured")
    typer.echo(f"{turn}  {measured}: {gave}", err=True)
