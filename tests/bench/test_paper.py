"""What a paper reports stands beside what a recipe measures, wherever the result is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caraserve_cli.bench.bench_recipe import BenchRecipe
from caraserve_cli.bench.floor import DeviceSpeed
from caraserve_cli.bench.paper import Paper, compare_with_paper
from caraserve_cli.errors import OptionError
from tests.bench.serving_recipes import SERVING, write
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]

PAPER = """
[paper]
title = "Toppings"
where = "evaluation, S3"
setting = "an A10 | <of theirs>"
differences = ["hardware: another", "weights: random"]
[[paper.reported]]
metric = "TTFT / CACHED"
system = "S-LoRA"
here = "stream"
value = 1.82
unit = "x"
figure = "distinct: stream: over_cached: mean_ttft"
[[paper.reported]]
metric = "latency, less by"
system = "Toppings"
value = 0.22
up_to = 0.23
unit = "%"
figure = "distinct: stream: measured_ms: mean_latency"
over = "distinct: cached: measured_ms: mean_latency"
less = true
[[paper.reported]]
metric = "TTFT / CACHED"
system = "dLoRA"
value = 1.29
unit = "x"
[[paper.reported]]
metric = "TTFT"
system = "none"
unit = "ms"
figure = "distinct: stream: measured_ms: mean_tftt"
"""


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    found = BenchRecipe.load(write(tmp_path, SERVING + PAPER)).paper
    assert found is not None
    return found


def spread(value: float) -> dict[str, object]:
    return {"values": [value], "median": value, "lowest": value, "highest": value}


def result(ttft_ratio: float, latency_ms: float) -> dict[str, object]:
    """As a serving benchmark has it; latency with cached is 10 ms."""
    cached = {"strategy": "cached", "measured_ms": {"mean_latency": spread(10.0)}, "over_cached": {}}
    stream = {
        "strategy": "stream",
        "measured_ms": {"mean_latency": spread(latency_ms)},
        "over_cached": {"mean_ttft": spread(ttft_ratio)},
    }
    return {"cases": [{"name": "distinct", "results": [cached, stream]}]}


def test_ours_stands_beside_theirs(paper: Paper) -> None:
    comparison = compare_with_paper(paper, [result(1.5, 8.0)])
    assert comparison.rows == [
        ("TTFT / CACHED", "S-LoRA", "stream", "1.82x", "1.50x"),
        ("latency, less by", "Toppings", "-", "22% to 23%", "20%"),
        ("TTFT / CACHED", "dLoRA", "-", "1.29x", "-"),
        ("TTFT", "none", "-", "-", "-"),
    ]
    assert comparison.missing == ("distinct: stream: measured_ms: mean_tftt",)


def test_of_several_runs_the_median_counts(paper: Paper) -> None:
    comparison = compare_with_paper(paper, [result(ratio, 8.0) for ratio in (1.1, 3.0, 1.2)])
    assert comparison.ours[0] == 1.2


def test_what_one_of_several_runs_lacks_is_missing(paper: Paper) -> None:
    assert compare_with_paper(paper, [result(1.1, 8.0), {}]).ours == (None,) * 4


def test_figures_of_the_paper_are_none_of_ours(paper: Paper) -> None:
    """Where a result with them is read again, as of the rounds of a recording."""
    read = {**result(1.5, 8.0), "paper": compare_with_paper(paper, [result(2.5, 8.0)]).as_json()}
    assert compare_with_paper(paper, [read]).ours[0] == 1.5


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('where = "evaluation, S3"', "", r"\[paper\]: 'where' is missing"),
        ("value = 1.82", "valeu = 1.82", "unknown key 'valeu'; did you mean 'value'"),
        ("up_to = 0.23", "up_to = 0.22", "'up_to' must be above 'value'"),
        ("value = 0.22\n", "", "'up_to' has no meaning without 'value'"),
        ("value = 1.29\n", "", "'value' is missing; it must be given, or 'figure', or both"),
        ('figure = "distinct: stream: measured_ms: mean_latency"', "", "'over' has no meaning without"),
        ('over = "distinct: cached: measured_ms: mean_latency"', "", "'less' has no meaning without 'over'"),
        (PAPER[PAPER.index("[[paper") :], "", "'reported' is missing; it must be at least one table"),
    ],
)
def test_what_is_wrong_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in PAPER
    with pytest.raises(OptionError, match=said):
        BenchRecipe.load(write(tmp_path, SERVING + PAPER.replace(old, new)))


def test_it_is_on_the_terminal_and_in_every_file(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = DeviceSpeed(bytes_per_s=1e13, flops_per_s=1e16)
    monkeypatch.setattr("caraserve_cli.bench.engine_runs.measure_speed", lambda *_: speed)
    files = {option: tmp_path / f"result{option[1:]}" for option in ("--json", "--markdown", "--html")}
    options = [part for option, path in files.items() for part in (option, path)]
    ended = caraserve("bench", write(tmp_path, SERVING + PAPER), *options)
    assert ended.returncode == 0, ended.stderr
    lines = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    assert lines[0] == "Toppings, evaluation, S3: an A10 | <of theirs>"
    content = json.loads(files["--json"].read_text())
    ratio = content["cases"][0]["results"][1]["over_cached"]["mean_ttft"]["median"]
    reported = content["paper"]["reported"]
    assert [each["ours"] is None for each in reported] == [False, False, True, True]
    assert (reported[0]["value"], reported[0]["ours"]) == (1.82, ratio)
    assert f"TTFT / CACHED S-LoRA stream 1.82x {ratio:.2f}x" in lines
    assert "TTFT / CACHED dLoRA - 1.29x -" in lines
    assert "Not measured here: distinct: stream: measured_ms: mean_tftt" in lines
    assert "- weights: random" in lines
    markdown = files["--markdown"].read_text()
    assert f"| TTFT / CACHED | S-LoRA | stream | 1.82x | {ratio:.2f}x |" in markdown
    assert "- hardware: another" in markdown
    assert "an A10 \\| \\<of theirs>" in markdown
    html = files["--html"].read_text()
    assert f"<td>1.82x</td><td>{ratio:.2f}x</td>" in html
    assert "<li>hardware: another</li>" in html
    assert "&lt;of theirs&gt;" in html
