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
# What is run beside a profile of the machine (test_simulator.py).
NEEDS_A_PROFILE = {"simulator", "simulator-sample"}
# What only a GPU measures.
ONLY_ON_A_GPU = {"paper-cpu": ["64 tokens, rank 64: sync_free_ms", "256 tokens, rank 64: sync_free_ms"]}


STEPS = """
kind = "steps"
description = "one long prompt"
base = "{base}"
device = "cpu"
dtype = "float32"
max_batch_tokens = 512
[[case]]
name = "prefill"
requests = 1
adapters = 0
measure = "prefill"
prompt_tokens = 4000
output_tokens = 1
"""


@pytest.fixture
def quick_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device so slow that all is below its floor, which nobody must mind. To measure one (test_floor.py)
    takes longer than these recipes."""
    speed = DeviceSpeed(bytes_per_s=1e6, flops_per_s=1e6)
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


def test_a_full_prefill_step_of_few_tokens(tmp_path: Path) -> None:
    """What is cut down still fills the steps that it measures."""
    text = STEPS.format(base=SAMPLE / "base")
    path = tmp_path / "mine.toml"
    path.write_text(text)
    recipe = BenchRecipe.load(path, is_small=True).recipe
    assert isinstance(recipe, EngineRecipe)
    (case,) = recipe.cases
    assert case.num_requests * case.prompt_tokens == case.options.max_batch_tokens == 16


@pytest.mark.usefixtures("quick_floor")
def test_a_recipe_of_ones_own_is_cut_down_too(caraserve: Caraserve, tmp_path: Path) -> None:
    """From a shape that no CPU holds, and a device that is not there."""
    path = tmp_path / "mine.toml"
    path.write_text(STEPS.format(base="llama2-70b").replace('"cpu"', '"cuda"'))
    ended = caraserve("bench", path, "--small")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "prefill step" in ended.stdout


def test_what_is_not_run_is_like_what_is() -> None:
    for name, other in LIKE_ANOTHER.items():
        small, run = (BenchRecipe.load(RECIPES[each], is_small=True).recipe for each in (name, other))
        assert type(small) is type(run)
        assert other not in LIKE_ANOTHER


@pytest.mark.usefixtures("quick_floor")
@pytest.mark.parametrize("name", sorted(RECIPES.keys() - LIKE_ANOTHER.keys() - NEEDS_A_PROFILE))
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


@pytest.mark.parametrize("name", sorted(NEEDS_A_PROFILE))
def test_a_recipe_that_needs_a_profile_says_so(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ended = caraserve("bench", name, "--small")
    assert_refused(ended, 2, "caraserve profile --base")


@pytest.mark.parametrize(
    "more",
    [
        ("--record", "x.json"),
        ("--baseline", "x.json"),
        ("--try-gate", "2"),
        ("--slow-decode", "1.1"),
        ("--profile", "x.json"),
        ("--github-benchmark", "x.json"),
    ],
)
def test_figures_of_a_try_are_not_kept(caraserve: Caraserve, more: tuple[str, str]) -> None:
    ended = caraserve("bench", "quick", "--small", *more)
    assert_refused(ended, 2, f"--small: its figures say nothing of speed, which {more[0]} is about")
