"""A whole benchmark of pairs: the real engine beside the real transformers and PEFT, through the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.paired_recipe import PairedRecipe
from caraserve_cli.bench.paired_result import Pass, judge_pairs
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.errors import OptionError
from tests.bench.paired_recipes import TINY_PAIRED, write_paired
from tests.cli.command import assert_refused, run_caraserve
from tests.cli.conftest import Caraserve, caraserve

__all__ = ["caraserve"]


def test_both_sides_decode_in_turns_and_agree(caraserve: Caraserve, tmp_path: Path) -> None:
    files = {option: tmp_path / f"result.{option}" for option in ("json", "markdown", "html")}
    options = [part for option, path in files.items() for part in (f"--{option}", path)]
    ended = caraserve("bench", write_paired(tmp_path), *options, "--github-benchmark", tmp_path / "gh.json")
    assert ended.returncode == 0, ended.stderr
    assert "All answers are those of the reference, token for token." in ended.stdout
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == [
        f"{turn}  {case}" for turn in ("warm-up", "repeat 1/2", "repeat 2/2") for case in ("mixed", "base")
    ]
    result = json.loads(files["json"].read_text())
    mixed, base = result["cases"]
    assert (mixed["reference"], base["reference"]) == ("peft", "transformers")
    assert (result["num_adapters"], mixed["num_requests"], mixed["undone"]) == (2, 3, [])
    assert all(len(each["step_over_reference"]["values"]) == 2 for each in (mixed, base))
    assert "| mixed: step_over_reference |" in files["markdown"].read_text()
    assert files["html"].read_text().count("<circle") == 2 * 2 * 8
    assert json.loads((tmp_path / "gh.bigger.json").read_text())[0]["name"] == "pairs: mixed: tokens_per_s"


def test_without_peft_that_is_told_before_any_work(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caraserve_cli.bench.paired_recipe.find_spec", lambda _: None)
    recipe = write_paired(tmp_path)
    (tmp_path / "requests.jsonl").unlink()  # which is read first
    first, second = caraserve("bench", recipe).stderr.splitlines()
    assert first == (
        "measured  mixed: nothing, for PEFT is not installed; run pip install 'caraserve[test]', in a clone "
        "'.[test]'"
    )
    assert "requests.jsonl" in second


def test_a_recording_and_a_comparison_with_it(caraserve: Caraserve, tmp_path: Path) -> None:
    """In processes of their own, as everywhere; one run fits the budget, and one gives no interval."""
    recipe = write_paired(tmp_path, TINY_PAIRED.partition('[[case]]\nname = "base"')[0])
    baseline, junit = tmp_path / "baseline.json", tmp_path / "junit.xml"
    ended = run_caraserve("bench", recipe, "--record", baseline, "--budget-s", "1")
    assert ended.returncode == 0, ended.stderr
    assert f"Recorded 1 runs: {baseline}" in ended.stdout
    ended = run_caraserve("bench", recipe, "--baseline", baseline, "--budget-s", "1", "--junit", junit)
    assert ended.returncode == 5, ended.stderr
    assert "Cannot tell: 3 of 3 metrics that decide" in ended.stdout
    assert "1 runs give no interval; 5 do" in ended.stdout
    assert 'skipped="7"' in junit.read_text()
    renamed = recipe.rename(tmp_path / "other.toml")
    ended = caraserve("bench", renamed, "--baseline", baseline)
    assert_refused(ended, 2, "--baseline", "was recorded with recipe 'pairs', not 'other'")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--budget-s", "9"), "--budget-s: without --record or --baseline"),
        (("--junit", "x.xml"), "--junit: it tells what a comparison found"),
        (("--list", "--record", "x.json"), "--list: it measures nothing"),
        (("--list", "--slow-decode", "1.1"), "--list: it measures nothing"),
        (("--try-gate", "2", "--record", "x.json"), "--try-gate: it records and compares by itself"),
        (("--slow-decode", "1.1", "--record", "x.json"), "--slow-decode: a slow baseline"),
        (("--slow-decode", "inf"), "--slow-decode: inf is no factor"),
        (("decode", "--slow-decode", "1.1"), "'decode' is none"),
    ],
)
def test_options_that_mean_nothing(caraserve: Caraserve, options: tuple[str, ...], said: str) -> None:
    assert_refused(caraserve("bench", *options), 2, said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("output_tokens = 5", "", "'output_tokens' is missing; it must be at least 2"),
        ("output_tokens = 5", "limit = 2\noutput_tokens = 5", "'limit' has no meaning beside 'batch_size'"),
        ("batch_size", 'device = "cuda"\nbatch_size', "'device' must be one of cpu"),
        ('name = "base"', 'name = "mixed"', "'name' must be different in every case"),
        ("without_adapters", "with_adapters", "unknown key 'with_adapters'"),
        ("repeats", "repaets", "unknown key 'repaets'"),
        ("kind", '[[gate]]\nmetric = "x"\ntolerance = -1\n[x]\nkind', "'tolerance' must be a number above"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        load_any_recipe(write_paired(tmp_path, TINY_PAIRED.replace(old, new, 1)))


def test_the_embedded_sample_needs_nothing_named() -> None:
    from caraserve_cli.bench.catalogue import DEFAULT_RECIPE, find_recipe

    recipe = load_any_recipe(find_recipe(DEFAULT_RECIPE))
    assert isinstance(recipe, PairedRecipe)
    assert recipe.workload.requests.is_file()


def _pass(ours_ms: tuple[float, ...], undone: str | None = None) -> Pass:
    return Pass(ours_ms=ours_ms, theirs_ms=(10, 4, 4, 8), num_requests=2, undone=undone)


def test_ratios_are_those_of_neighbours() -> None:
    result = judge_pairs("one", "peft", [_pass((5, 2, 2, 2))])
    assert result.step_over_reference.median == 0.5
    assert result.prefill_over_reference.median == 0.5
    assert result.p95_step_over_reference.median == 0.25
    assert (result.ttft_ms.median, result.step_ms.median) == (5, 2)
    # 8 tokens in 11 ms.
    assert result.tokens_per_s.median == pytest.approx(8 / 0.011)


def test_other_work_cannot_be_told() -> None:
    passes = [_pass((5, 2, 2, 2)), _pass((5, 2, 2, 2), "1 of 2 answers are not those of the reference")]
    assert judge_pairs("one", "peft", passes).verdict is Verdict.CANNOT_TELL
