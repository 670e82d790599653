"""The driver of a fleet, measured: real driver, real Ray, replicas that answer at once."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.driver import run_driver
from caraserve_cli.bench.driver_recipe import ALONE, OVER_RAY, DriverRecipe
from caraserve_cli.bench.driver_result import DriverCase, DriverResult, DriverRun, judge_driver
from caraserve_cli.bench.driver_terminal import render_driver
from caraserve_cli.bench.metric_finder import find_metrics
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.bench.result_facts import MeasuredFacts
from caraserve_cli.errors import OptionError

RECIPE = """
kind = "driver"
description = "a small one"
requests = 400
adapters = 7
prompt_tokens = 9
max_running = 16
repeats = 2
alone_at_least = 1e-3
"""


def load(tmp_path: Path, text: str = RECIPE) -> DriverRecipe:
    path = tmp_path / "small.toml"
    path.write_text(text)
    recipe = load_any_recipe(path)
    assert isinstance(recipe, DriverRecipe)
    return recipe


def printed(result: DriverResult) -> str:
    file = StringIO()
    Console(file=file, width=200).print(render_driver(result))
    return file.getvalue()


def test_the_drivers_own_code_is_measured_alone_and_over_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    told: list[tuple[str, int]] = []
    result = run_driver(load(tmp_path), lambda case, repeat, _: told.append((case, repeat)))
    assert told == [(ALONE, 1), (ALONE, 2), (OVER_RAY, 1), (OVER_RAY, 2)]
    assert result.verdict is Verdict.MET
    assert [case.problem for case in result.cases] == [None, None]
    metrics = {metric.name: metric for metric in find_metrics(result.as_json())}
    assert metrics.keys() == {"alone: requests_per_s", "over-ray: requests_per_s"}
    assert all(metric.direction == "higher" for metric in metrics.values())
    assert "All work was done and every requirement is met." in printed(result)


def test_without_ray_the_driver_alone_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caraserve_cli.fleet.ray_cluster.find_spec", lambda _: None)
    result = run_driver(load(tmp_path), lambda *_: None)
    assert result.verdict is Verdict.MET
    assert "pip install 'caraserve[ray]'" in printed(result)
    required = run_driver(load(tmp_path, RECIPE + "over_ray_at_least = 1"), lambda *_: None)
    assert required.verdict is Verdict.CANNOT_TELL


def judged(tmp_path: Path, case: DriverCase) -> DriverResult:
    recipe = load(tmp_path)
    facts = MeasuredFacts(
        recipe=recipe.name,
        description=recipe.description,
        caraserve_version="0",
        commit=None,
        versions={},
        num_cores=2,
        load_average=0.0,
    )
    return DriverResult(recipe=recipe, facts=facts, cases=(case,))


@pytest.mark.parametrize(
    ("run", "verdict", "line"),
    [
        (DriverRun(0.01, 100), Verdict.MET, "every requirement is met"),
        (DriverRun(0.1, 100), Verdict.MISSED, "alone: 1,000 requests/s; the recipe requires 5,000"),
        (DriverRun(0.01, 99), Verdict.CANNOT_TELL, "1 of 100 requests were not answered"),
        (DriverRun(0.01, 100, ("replica-1 died",)), Verdict.CANNOT_TELL, "replica-1 died"),
    ],
)
def test_what_was_not_done_is_no_speed(tmp_path: Path, run: DriverRun, verdict: Verdict, line: str) -> None:
    result = judged(tmp_path, judge_driver(ALONE, [run], 100, 5000.0))
    assert result.verdict is verdict
    assert line in printed(result)


def test_the_recipe_requires_what_is_promised() -> None:
    recipe = load_any_recipe(find_recipe("driver"))
    assert isinstance(recipe, DriverRecipe)
    assert recipe.at_least == {ALONE: 5000.0, OVER_RAY: None}


def test_a_wrong_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'placement' must be one of first-fit"):
        load(tmp_path, RECIPE + 'placement = "luck"')
    with pytest.raises(OptionError, match="did you mean 'replicas'"):
        load(tmp_path, RECIPE + "replica = 2")
