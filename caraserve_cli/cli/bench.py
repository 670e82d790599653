"""`caraserve bench`: parse, measure, print, exit status."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from caraserve_cli.cli import bench_options as o
from caraserve_cli.cli.bench_files import BenchFiles
from caraserve_cli.errors import ExitStatus, OptionError
from caraserve_cli.job.stop_request import StopRequest

if TYPE_CHECKING:
    from caraserve_cli.bench.bench_recipe import BenchRecipe
    from caraserve_cli.bench.judged_metric import GateVerdict

# Ten runs of recipes/quick.toml, and a few more on a quiet machine.
_DEFAULT_BUDGET_S = 120.0
_GATE_COLUMNS = 140


def bench(
    context: typer.Context,
    recipe: o.Recipe = None,
    list_recipes: o.ListRecipes = False,
    small: o.Small = False,
    record: o.Record = None,
    baseline: o.Baseline = None,
    budget_s: o.BudgetS = None,
    profile: o.Profile = None,
    try_gate: o.TryGate = None,
    slow_decode: o.SlowDecode = None,
    json_file: o.JsonFile = None,
    markdown_file: o.MarkdownFile = None,
    html_file: o.HtmlFile = None,
    junit_file: o.JunitFile = None,
    github_file: o.GithubFile = None,
) -> None:
    """Run a recipe: measure systems side by side on the same requests, check that their answers are equal;
    or measure what the engine, or a part of it, gives of what the device could.

    With --small, cut the recipe down to what a CPU does in seconds on the embedded sample, as a try.

    With --baseline, run it again and again, and say whether anything became worse than it was.

    Exit status: 0 requirements met, or held; 4 missed, or regressed; 5 the work was not done or not the same,
    or the baseline cannot tell. With --try-gate: 0 the gate keeps its word, 4 it does not.
    """
    files = BenchFiles(
        record=record,
        json=json_file,
        markdown=markdown_file,
        html=html_file,
        junit=junit_file,
        github_benchmark=github_file,
    )
    asked = _Asked(recipe, small, baseline, budget_s, profile, try_gate, slow_decode, files)
    if list_recipes:
        if asked != _NOTHING_ASKED:
            raise OptionError(
                "--list: it measures nothing; leave out RECIPE and --json and what else there is, or --list"
            )
        raise typer.Exit(_list())
    asked.check()
    stop: StopRequest = context.obj
    stop.goal = "all was measured"
    raise typer.Exit(_measure(asked, stop))


@dataclass(frozen=True, slots=True)
class _Asked:
    """The options, but for --list; None where one was not given."""

    recipe: str | None
    is_small: bool
    baseline: Path | None
    budget_s: float | None
    profile: Path | None
    try_gate: int | None
    slow_decode: float | None
    files: BenchFiles

    @property
    def is_gated(self) -> bool:
        return self.files.record is not None or self.baseline is not None

    def check(self) -> None:
        """Refuse what does not go together, and what would fail after the measurement.

        Raises:
            InputError: the recipe cannot be read.
            OptionError: an option means nothing beside the others, or a file is given twice.
            OutputError: a file cannot be written.
        """
        self._check_small()
        if self.try_gate is not None and (self.baseline is not None or self.files.given):
            raise OptionError(
                "--try-gate: it records and compares by itself, and writes no files; leave out --record, "
                "--baseline, --json and what else there is, or --try-gate"
            )
        if self.profile is not None and (self.is_gated or self.try_gate or self.slow_decode):
            raise OptionError(
                "--profile: what is simulated is the same in every run; leave out --record, --baseline, "
                "--try-gate and --slow-decode, or --profile"
            )
        if self.profile is not None and self.files.github_benchmark is not None:
            raise OptionError(
                "--github-benchmark: it is for what was measured, and with --profile nothing is; leave out "
                "either"
            )
        if self.slow_decode is not None and self.files.record is not None:
            raise OptionError("--slow-decode: a slow baseline would hide regressions; leave it out")
        if self.slow_decode is not None and not math.isfinite(self.slow_decode):
            raise OptionError(f"--slow-decode: {self.slow_decode} is no factor; give one such as 1.1")
        if self.budget_s is not None and not self.is_gated and self.try_gate is None:
            raise OptionError(
                "--budget-s: without --record or --baseline, or --try-gate, a recipe is run once; "
                "leave it out"
            )
        if self.baseline is None and self.files.junit is not None:
            raise OptionError(
                "--junit: it tells what a comparison found; give --baseline too, or leave it out"
            )
        self.files.check(self._read())

    def _check_small(self) -> None:
        """Refuse to keep or compare the figures of a try.

        Raises:
            OptionError: there is an option that would.
        """
        others = {
            "--record": self.files.record,
            "--baseline": self.baseline,
            "--try-gate": self.try_gate,
            "--profile": self.profile,
            "--slow-decode": self.slow_decode,
            "--github-benchmark": self.files.github_benchmark,
        }
        given = [option for option, value in others.items() if value is not None]
        if self.is_small and given:
            raise OptionError(
                f"--small: its figures say nothing of speed, which {given[0]} is about; leave out either"
            )

    def _read(self) -> list[tuple[str, Path]]:
        """What it is, and the file, of all that is read.

        Raises:
            InputError: the recipe cannot be read.
            OptionError: there is none of this name, or it is no TOML.
        """
        from caraserve_cli.bench.recipe_file import named_files

        options = {"--baseline": self.baseline, "--profile": self.profile}
        path = self._find_path()
        of_recipe = [("RECIPE", path), *((f"{key} in RECIPE", file) for key, file in named_files(path))]
        return [*of_recipe, *((option, file) for option, file in options.items() if file is not None)]

    def _find_path(self) -> Path:
        """The recipe's file; see `find_recipe`."""
        from caraserve_cli.bench.catalogue import DEFAULT_RECIPE, find_recipe

        return find_recipe(DEFAULT_RECIPE if self.recipe is None else self.recipe)

    def find_recipe(self) -> BenchRecipe:
        """The recipe, as it is to be measured.

        Raises:
            InputError: it cannot be read.
            OptionError: there is none of this name, it is wrong, or cannot be slowed.
        """
        from caraserve_cli.bench.bench_recipe import BenchRecipe
        from caraserve_cli.bench.recipe_kinds import check_can_be_slowed

        found = BenchRecipe.load(self._find_path(), is_small=self.is_small)
        if self.slow_decode is not None:
            check_can_be_slowed(found.recipe)
        return found


_NO_FILES = BenchFiles(record=None, json=None, markdown=None, html=None, junit=None, github_benchmark=None)
_NOTHING_ASKED = _Asked(None, False, None, None, None, None, None, _NO_FILES)


def _list() -> int:
    from caraserve_cli.bench.catalogue import embedded_recipes
    from caraserve_cli.bench.recipe_kinds import load_any_recipe

    recipes = [load_any_recipe(path) for path in embedded_recipes()]
    width = max(len(recipe.name) for recipe in recipes)
    for recipe in recipes:
        typer.echo(f"{recipe.name:<{width}}  {recipe.description}")
    return ExitStatus.OK


def _measure(asked: _Asked, stop: StopRequest) -> int:
    if sys.stderr.isatty():
        # The first run of a recipe may be minutes away.
        recipe = asked.find_recipe().recipe
        typer.echo(f"{recipe.name}: {recipe.description}", err=True)
    if asked.try_gate is not None:
        return _try_gate(asked, asked.try_gate)
    return _run_gated(asked) if asked.is_gated else _run(asked, stop)


def _run(asked: _Asked, stop: StopRequest) -> int:
    from rich.console import Console

    recipe = asked.find_recipe()

    def tell(measured: str, repeat: int, repeats: int, gave: str) -> None:
        stop.check()
        _tell(measured, repeat, repeats, gave)

    stop.check()
    run = recipe.measure(tell, slow_decode=asked.slow_decode, profile=asked.profile)
    asked.files.write_result(run)
    Console(soft_wrap=True).print(run.rendered)
    return run.verdict.exit_status


def _run_gated(asked: _Asked) -> int:
    from rich.console import Console

    from caraserve_cli.bench.confidence import MIN_VALUES
    from caraserve_cli.bench.gate_terminal import render_gate
    from caraserve_cli.bench.gated_run import run_gated
    from caraserve_cli.bench.recording import read_recording

    found = asked.find_recipe()
    path, recipe = found.path, found.recipe
    baseline = None if asked.baseline is None else read_recording(asked.baseline)
    if baseline is not None and baseline.recipe != recipe.name:
        raise OptionError(
            f"--baseline: '{asked.baseline}' was recorded with recipe '{baseline.recipe}', "
            f"not '{recipe.name}'"
        )
    budget_s = asked.budget_s or _DEFAULT_BUDGET_S
    done = run_gated(path, baseline, budget_s, _tell_round, slow_decode=asked.slow_decode)
    asked.files.write_gated(done)
    typer.echo(done.last.printed)
    if done.gate is None:
        typer.echo(f"Recorded {done.recording.num_rounds} runs: {asked.files.record}")
        if done.recording.num_rounds < MIN_VALUES:
            advice = f"a comparison needs {MIN_VALUES} runs to tell anything; give a larger --budget-s"
            typer.echo(f"caraserve: --record: {advice}", err=True)
        return ExitStatus.OK
    # The log of a CI job counts as 80 columns; a long line there is better than names and figures cut short.
    width = max(Console().width, _GATE_COLUMNS)
    Console(soft_wrap=True, width=width).print(render_gate(done.gate))
    return done.gate.verdict.exit_status


def _try_gate(asked: _Asked, num_tries: int) -> int:
    from caraserve_cli.bench.gate_trials import try_gate

    path = asked.find_recipe().path

    def tell(number: int, verdict: GateVerdict) -> None:
        typer.echo(f"try {number} of {num_tries}: {verdict}", err=True)

    trials = try_gate(path, num_tries, asked.budget_s or _DEFAULT_BUDGET_S, asked.slow_decode, tell)
    typer.echo(trials.describe())
    return trials.exit_status


def _tell_round(number: int, is_settled: bool) -> None:
    typer.echo(f"run {number}: {'known well enough' if is_settled else 'not narrow yet'}", err=True)


def _tell(measured: str, repeat: int, repeats: int, gave: str) -> None:
    """One line a run on stderr, so that a long benchmark is seen to move."""
    turn = f"repeat {repeat}/{repeats}" if repeat else ("warm-up" if repeats else "measured")
    typer.echo(f"{turn}  {measured}: {gave}", err=True)
