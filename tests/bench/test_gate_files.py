"""What the gate writes is what its readers take."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from caraserve_cli.bench.gate import GateResult, judge
from caraserve_cli.bench.gate_html import gate_html, recording_html
from caraserve_cli.bench.gate_junit import gate_junit
from caraserve_cli.bench.gate_markdown import gate_markdown, recording_markdown
from caraserve_cli.bench.gate_rules import apply_gate_rules, parse_gate_rules
from caraserve_cli.bench.gate_terminal import render_gate
from caraserve_cli.bench.github_benchmark import github_benchmark
from caraserve_cli.bench.metric import Direction
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.bench.recording import read_recording, recipe_digest
from caraserve_cli.errors import InputError, OptionError
from tests.bench.recordings import noisy, recorded

BEFORE = recorded(
    {
        "a | b <i>: step_over_reference": noisy(1, seed=1),
        "good: tokens_per_s": noisy(100, seed=2),
        "wild: p99_ttft_ms": noisy(5, seed=3, noise=2),
    }
)
NOW = recorded(
    {
        "a | b <i>: step_over_reference": noisy(1.2, seed=4),
        "good: tokens_per_s": noisy(100, seed=5),
        "wild: p99_ttft_ms": noisy(5, seed=6, noise=2),
    },
    torch="2.14",
)


@pytest.fixture
def result() -> GateResult:
    """One metric of each verdict."""
    return judge(BEFORE, NOW)


def test_junit_fails_what_regressed_and_skips_what_cannot_be_told(result: GateResult) -> None:
    suite = ElementTree.fromstring(gate_junit(result)).find("testsuite")
    assert suite is not None
    assert [suite.get(key) for key in ("tests", "failures", "skipped", "errors")] == ["3", "1", "1", "0"]
    outcomes = {case.get("name"): [part.tag for part in case] for case in suite.iter("testcase")}
    assert outcomes == {
        "a | b <i>: step_over_reference": ["failure", "system-out"],
        "good: tokens_per_s": ["system-out"],
        "wild: p99_ttft_ms": ["skipped", "system-out"],
    }


def test_markdown_has_a_row_a_metric_whatever_their_names(result: GateResult) -> None:
    lines = gate_markdown(result).splitlines()
    assert lines[0] == "## ❌ caraserve bench tiny: regressed"
    assert "Regressed: 'a \\| b \\<i>: step_over_reference'" in lines[2]
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 5
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}
    assert "- Other version: torch was 2.13, is 2.14." in lines
    assert "| good: tokens_per_s |" in recording_markdown(NOW)


def test_html_loads_nothing_and_escapes_names(result: GateResult) -> None:
    page = gate_html(result)
    assert "a | b &lt;i&gt;: step_over_reference" in page
    assert page.count("<circle") == 3 * 12
    for each in (page, recording_html(NOW)):
        assert not [mark for mark in ("http", "src=", "<script", "@import") if mark in each]


def test_github_benchmark_has_a_file_a_direction() -> None:
    files = github_benchmark(NOW)
    assert [len(files[suffix]) for suffix in (".smaller.json", ".bigger.json")] == [2, 1]
    (bigger,) = files[".bigger.json"]
    assert bigger["name"] == "tiny: good: tokens_per_s"
    assert bigger["unit"] == "tokens/s"
    assert set(bigger) == {"name", "unit", "value", "range", "extra"}


def test_a_recording_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(NOW.as_json()))
    assert read_recording(path) == NOW


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is no JSON"),
        ('{"kind": "steps"}', "is no recording; make one with"),
        ('{"format": "caraserve-bench-recording/1"}', "is a broken recording"),
    ],
)
def test_what_is_no_recording(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(content)
    with pytest.raises(InputError, match=said):
        read_recording(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_recording(tmp_path / "none.json")


def test_a_recipe_says_otherwise_of_its_metrics() -> None:
    tables = {
        "gate": [
            {"metric": "*: tokens_per_s", "tolerance": 0.5, "direction": "lower"},
            {"metric": "wild: *", "ignore": True},
        ]
    }
    table = RecipeTable(tables, "tiny.toml")
    rules = parse_gate_rules(table)
    table.close()
    _, good, wild = apply_gate_rules(NOW.metrics, rules, "tiny")
    assert (good.direction, good.tolerance) == (Direction.LOWER, 0.5)
    assert not wild.is_judged


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"metric": "x", "direction": "up"}, "'direction' must be lower or higher"),
        ({"metric": "x", "tolerance": 0}, "'tolerance' must be a number above zero"),
        ({"metric": "x", "ignore": True, "tolerance": 0.1}, "'tolerance' has no meaning beside 'ignore'"),
        ({"metric": "x", "tolerence": 0.1}, "did you mean 'tolerance'"),
        ({}, "'metric'"),
    ],
)
def test_a_wrong_rule_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        parse_gate_rules(RecipeTable({"gate": [values]}, "tiny.toml"))


def test_a_rule_that_fits_nothing_is_refused() -> None:
    rules = parse_gate_rules(RecipeTable({"gate": [{"metric": "stepp*"}]}, "tiny.toml"))
    with pytest.raises(OptionError, match=r"no metric is called 'stepp\*'; there are 'a "):
        apply_gate_rules(NOW.metrics, rules, "tiny")


def test_what_is_required_or_said_changes_no_figure() -> None:
    plain = {"kind": "paired", "repeats": 2}
    assert recipe_digest({**plain, "description": "x", "gate": [{}]}) == recipe_digest(plain)
    assert recipe_digest({**plain, "repeats": 3}) != recipe_digest(plain)


def test_names_are_neither_markdown_nor_xml_nor_styles() -> None:
    name = "[x](http://a) &lt; @b\n\x1b[31m: tokens_per_s"
    hostile = judge(recorded({name: noisy(1, seed=1)}), recorded({name: noisy(1, seed=2)}))
    (row,) = (
        line for line in gate_markdown(hostile).splitlines() if "tokens_per_s" in line and line[0] == "|"
    )
    assert row.startswith("| \\[x\\](http://a) &amp;lt; \\@b \x1b\\[31m: tokens_per_s | ")
    case = next(ElementTree.fromstring(gate_junit(hostile)).iter("testcase"))
    assert case.get("name") == "[x](http://a) &lt; @b\n\ufffd[31m: tokens_per_s"
    console = Console(file=StringIO(), width=200)
    bold = recorded({"[bold]: tokens_per_s": noisy(1, seed=1)})
    console.print(render_gate(judge(bold, bold)))
    assert isinstance(console.file, StringIO)
    assert "[bold]: tokens_per_s" in console.file.getvalue()


def test_a_metric_at_zero_has_a_row_everywhere() -> None:
    zero = recorded({"a: tokens_per_s": (0.0,) * 6, "b: tokens_per_s": (1.0,) * 6})
    result = judge(recorded({"a: tokens_per_s": (1.0,) * 6, "b: tokens_per_s": (1.0,) * 6}), zero)
    assert "a: tokens_per_s" in gate_markdown(result)
    assert gate_html(result).count("<circle") == 12
    assert recording_html(zero).count("<circle") == 6
    assert gate_junit(result).count(b"<failure") == 1
    assert len(github_benchmark(zero)[".bigger.json"]) == 2


@pytest.mark.parametrize("change", [{"fingerprint": []}, {"versions": None}])
def test_a_recording_with_parts_of_another_kind(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(NOW.as_json() | change))
    with pytest.raises(InputError, match="is a broken recording"):
        read_recording(path)
