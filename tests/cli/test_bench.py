"""`caraserve bench` as a user meets it: what goes where, and one line for what is wrong.

The verdicts and their exit status: tests/bench/test_benchmark.py.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.bench.conftest import WriteRecipe, write_recipe
from tests.cli.command import assert_refused, caraserve_command, run_caraserve, user_environment
from tests.cli.conftest import Caraserve
from tests.cli.forked import run_forked

__all__ = ["write_recipe"]


@pytest.fixture
def recipe(write_recipe: WriteRecipe) -> Path:
    """CaraServe and PEFT's mixed batches."""
    return write_recipe(systems=("caraserve", "peft-mixed"), warmups=1)


def test_the_result_goes_to_stdout_and_the_runs_to_stderr(recipe: Path) -> None:
    """In a process of its own, so that a library's warning or progress bar would be seen."""
    ended = run_caraserve("bench", recipe)
    assert ended.returncode == 0, ended.stderr
    assert "caraserve / peft-mixed" in ended.stdout
    assert ended.stdout.count("5/5") == 2
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == [
        "warm-up  caraserve",
        "warm-up  peft-mixed",
        "repeat 1/1  caraserve",
        "repeat 1/1  peft-mixed",
    ]


def test_a_terminal_is_told_what_will_be_measured(recipe: Path) -> None:
    """A true one, before the first run, which may be minutes away."""
    ours, its = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        command = caraserve_command("bench", recipe)
        started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its, env=user_environment())
        os.close(its)
        try:
            assert screen.readline().decode().strip().startswith(f"{recipe.stem}: ")
        finally:
            started.kill()
            started.wait()


def test_an_unknown_recipe(caraserve: Caraserve) -> None:
    assert_refused(caraserve("bench", "pefd"), 2, "no recipe 'pefd'", "did you mean 'peft'")


@pytest.mark.parametrize("name", ["", "~no-such-user/mine.toml"])
def test_a_name_of_nothing(caraserve: Caraserve, name: str) -> None:
    """An empty one, as an unset shell variable gives it, is not the default recipe."""
    assert_refused(caraserve("bench", name), 2, "RECIPE: ", f"'{name}'")


@pytest.mark.parametrize("more", [("peft",), ("--json", "x.json"), ("peft", "--json", "x.json")])
def test_a_list_measures_nothing(caraserve: Caraserve, more: tuple[str, ...]) -> None:
    assert_refused(caraserve("bench", "--list", *more), 2, "--list: it measures nothing", "RECIPE and --json")


def test_an_unknown_key(caraserve: Caraserve, recipe: Path) -> None:
    recipe.write_text("repaets = 3\n" + recipe.read_text())
    assert_refused(caraserve("bench", recipe), 2, "unknown key 'repaets'", "'repeats'", str(recipe))


def test_a_json_file_that_could_not_be_written_is_refused_before_anything_runs(
    caraserve: Caraserve, recipe: Path, tmp_path: Path
) -> None:
    ended = caraserve("bench", recipe, "--json", tmp_path / "none" / "result.json")
    assert_refused(ended, 1, "--json", "its folder does not exist")
    assert_refused(caraserve("bench", recipe, "--json", tmp_path), 1, "--json", "it is a folder")


@pytest.mark.parametrize("first", ["--record", "--baseline"])
def test_one_file_for_two_things_is_refused(
    caraserve: Caraserve, recipe: Path, tmp_path: Path, first: str
) -> None:
    """A baseline would be lost by the recording that has regressed."""
    file = tmp_path / "kept"
    ended = caraserve("bench", recipe, first, file, "--json", tmp_path / "." / "kept")
    assert_refused(ended, 2, f"--json: '{file}' is the file of {first} too; give each its own")


def test_no_file_is_where_a_plot_would_be(caraserve: Caraserve, recipe: Path, tmp_path: Path) -> None:
    """A recipe of the kind `cluster` draws one beside its JSON, which nothing may be lost by."""
    plot, page = tmp_path / "x.svg", tmp_path / "x.json"
    ended = caraserve("bench", recipe, "--json", plot)
    assert_refused(ended, 2, f"--json: '{plot}' is the file of the plot beside --json too")
    ended = caraserve("bench", recipe, "--json", page, "--html", plot)
    assert_refused(ended, 2, f"--html: '{plot}' is the file of the plot beside --json too")
    assert not plot.exists()
    assert_refused(caraserve("bench", recipe, "--json", "."), 1, "--json", "it is a folder")


@pytest.mark.parametrize("suffix", ["smaller", "bigger"])
def test_nothing_is_where_github_files_would_be(
    caraserve: Caraserve, recipe: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"x.{suffix}.json"
    ended = caraserve("bench", recipe, "--github-benchmark", tmp_path / "x.json", "--json", file)
    assert_refused(ended, 2, f"--github-benchmark: '{file}' is the file of --json too; give each its own")
    recording = ("--baseline", file, "--github-benchmark", tmp_path / "x.json")
    assert_refused(caraserve("bench", recipe, *recording), 2, f"'{file}' is the file of --baseline too")
    (tmp_path / f"y.{suffix}.json").mkdir()
    ended = caraserve("bench", recipe, "--github-benchmark", tmp_path / "y.json")
    assert_refused(ended, 1, "--github-benchmark", f"y.{suffix}.json", "it is a folder")
    assert_refused(caraserve("bench", recipe, "--github-benchmark", "."), 1, "it is a folder")


@pytest.mark.parametrize(("name", "what"), [("x.svg", "plot"), ("x.trace.json", "trace")])
def test_a_folder_is_where_a_plot_would_be(
    caraserve: Caraserve, recipe: Path, tmp_path: Path, name: str, what: str
) -> None:
    (tmp_path / name).mkdir()
    ended = caraserve("bench", recipe, "--json", tmp_path / "x.json")
    assert_refused(ended, 1, f"the {what} beside --json: '{tmp_path / name}' cannot be written", "a folder")
    assert not (tmp_path / "x.json").exists()


def test_a_file_that_nobody_may_write_is_refused_before_anything_runs(
    caraserve: Caraserve, recipe: Path
) -> None:
    """Not even the super-user, whom permissions of files on a disk do not keep off."""
    file = "/proc/sys/kernel/ostype"
    assert_refused(caraserve("bench", recipe, "--json", file), 1, f"--json: '{file}'", "not permitted")


def test_what_is_read_is_not_written_over(caraserve: Caraserve, recipe: Path, tmp_path: Path) -> None:
    profile, requests, link = tmp_path / "p.json", tmp_path / "requests.jsonl", tmp_path / "link.json"
    link.symlink_to(profile)
    before = recipe.read_text(), requests.read_text()
    for option, file, other in (
        ("--json", profile, "--profile"),
        ("--json", link, "--profile"),
        ("--html", recipe, "RECIPE"),
        ("--markdown", requests, "requests in RECIPE"),
    ):
        ended = caraserve("bench", recipe, "--profile", profile, option, file)
        assert_refused(ended, 2, f"{option}: '{file}' is the file of {other} too; give each its own")
    assert (recipe.read_text(), requests.read_text()) == before


def test_without_peft_it_says_what_to_install(recipe: Path) -> None:
    (recipe.parent / "requests.jsonl").unlink()  # before it reads anything
    without_peft = "import sys; assert 'peft' not in sys.modules; sys.modules['peft'] = None"
    ended = run_forked("bench", recipe, before=without_peft)
    assert_refused(ended, 1, "PEFT, which is not installed", "pip install 'caraserve[test]'")
