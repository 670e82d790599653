"""`caraserve bench` as a user meets it: what goes where, and one line for what is wrong.

The verdicts and their exit status: tests/bench/test_benchmark.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.command import SAMPLE, assert_refused, run_caraserve, user_environment, write_rows
from tests.cli.conftest import Caraserve


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """CaraServe and PEFT's mixed batches on two requests, one of an adapter with lora_bias."""
    rows = [
        {"id": "u", "prompt": "Input: horizon\nOutput: ", "adapter": "upper", "max_tokens": 4},
        {"id": "c", "prompt": "Input: whale\nOutput: ", "adapter": "count", "max_tokens": 4},
    ]
    write_rows(tmp_path / "requests.jsonl", rows)
    path = tmp_path / "tiny.toml"
    path.write_text(
        f"""
        description = "two requests"
        systems = ["caraserve", "peft-mixed"]
        batch_size = 2
        warmups = 1
        repeats = 1
        [workload]
        base = "{SAMPLE / "base"}"
        adapters = ["{SAMPLE / "adapters"}"]
        requests = "requests.jsonl"
        """
    )
    return path


def test_the_result_goes_to_stdout_and_the_runs_to_stderr(recipe: Path) -> None:
    """In a process of its own, so that a library's warning or progress bar would be seen."""
    ended = run_caraserve("bench", recipe)
    assert ended.returncode == 0, ended.stderr
    assert "caraserve / peft-mixed" in ended.stdout
    assert ended.stdout.count("2/2") == 2
    assert [line.split(":")[0] for line in ended.stderr.splitlines()] == [
        "warm-up  caraserve",
        "warm-up  peft-mixed",
        "repeat 1/1  caraserve",
        "repeat 1/1  peft-mixed",
    ]


def test_an_unknown_recipe(caraserve: Caraserve) -> None:
    assert_refused(caraserve("bench", "pefd"), 2, "no recipe 'pefd'", "did you mean 'peft'")


def test_an_unknown_key(caraserve: Caraserve, recipe: Path) -> None:
    recipe.write_text("repaets = 3\n" + recipe.read_text())
    assert_refused(caraserve("bench", recipe), 2, "unknown key 'repaets'", "'repeats'", str(recipe))


def test_a_json_file_that_could_not_be_written_is_refused_before_anything_runs(
    caraserve: Caraserve, recipe: Path, tmp_path: Path
) -> None:
    ended = caraserve("bench", recipe, "--json", tmp_path / "none" / "result.json")
    assert_refused(ended, 1, "--json", "its folder does not exist")
    assert_refused(caraserve("bench", recipe, "--json", tmp_path), 1, "--json", "it is a folder")


def test_without_peft_it_says_what_to_install(recipe: Path) -> None:
    without_peft = "import sys; sys.modules['peft'] = None; from caraserve_cli.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", without_peft, "bench", recipe],
        capture_output=True,
        text=True,
        env=user_environment(),
        timeout=300,
        check=False,
    )
    assert_refused(ended, 1, "PEFT, which is not installed", "pip install 'caraserve[test]'")
