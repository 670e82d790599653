"""Every embedded recipe can be tried anywhere: it parses, can be cut down, and what is cut down runs on the
CPU, through the command, with its work done and the paper's figures beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caraserve_cli.bench.bench_recipe import BenchRecipe
from caraserve_cli.bench.catalogue import embedded_recipes
from caraserve_cli.bench.engine_case import EngineRecipe
from caraserve_cli.bench.floor import DeviceSpeed
from caraserve_cli.bench.small import SMALL_WORDS
from tests.cli.command import SAMPLE, assert_refused
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

RECIPES = {path.stem: path for path in embedded_recipes()}
# Another one has the same kind and the same sort of cases, and is run.
LIKE_ANOTHER = {"ci": "quick", "peft-long": "peft", "paper-s2": "paper-s1", "paper-s6": "paper-s5"}
# What only a GPU measures.
ONLY_ON_A_GPU = {"paper-cpu": ["64 tokens, rank 64: sync_free_ms", "256 tokens, rank 64: sync_free_ms"]}


@pytest.fixture
def quick_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device so fast that all is above its floor, whose measuring (test_floor.py) takes longer than these
    recipes."""
    speed = DeviceSpeed(bytes_per_s=1e13, flops_per_s=1e16)
    for module in ("engine_runs", "kernels"):
        monkeypatch.setattr(f"caraserve_cli.bench.{module}.measure_speed", lambda *_: speed)
    monkeypatch.setattr("caraserve_cli.bench.assist_run.measure_peak", lambda *_: 1e9)


@pytest.mark.parametrize("path", RECIPES.values(), ids=RECIPES)
def test_every_recipe_can_be_cut_down(path: Path) -> None:
    recipe = BenchRecipe.load(path, is_small=True).recipe
    assert recipe.name == path.stem
    if isinstance(recipe, EngineRecipe):
        assert (recipe.options.base, recipe.options.device) == (str(SAMPLE / "base"), "cpu")
        assert all(case.options.base == str(SAMPLE / "base") for case in recipe.cases)


def test_what_is_not_run_is_like_what_is() -> None:
    for name, other in LIKE_ANOTHER.items():
        small, run = (BenchRecipe.load(RECIPES[each], is_small=True).recipe for each in (name, other))
        assert type(small) is type(run)
        assert other not in LIKE_ANOTHER


@pytest.mark.usefixtures("quick_floor")
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in LIKE_ANOTHER])
def test_a_recipe_runs_on_the_sample(caraserve: Caraserve, tmp_path: Path, name: str) -> None:
    result_file = tmp_path / "result.json"
    ended = caraserve("bench", name, "--small", "--json", result_file)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert SMALL_WORDS in ended.stdout
    result = json.loads(result_file.read_text())
    assert (result["small"], result["verdict"]) == (True, "met")
    reported = result.get("paper", {"reported": []})["reported"]
    missing = [each["figure"] for each in reported if each["figure"] and each["ours"] is None]
    assert missing == ONLY_ON_A_GPU.get(name, [])
    assert bool(reported) == name.startswith("paper-")


@pytest.mark.parametrize(
    "more",
    [
        ("--record", "x.json"),
        ("--baseline", "x.json"),
        ("--try-gate", "2"),
        ("--slow-decode", "1.1"),
        ("--github-benchmark", "x.json"),
    ],
)
def test_figures_of_a_try_are_not_kept(caraserve: Caraserve, more: tuple[str, str]) -> None:
    ended = caraserve("bench", "quick", "--small", *more)
    assert_refused(ended, 2, f"--small: its figures say nothing of speed, which {more[0]} is about")
