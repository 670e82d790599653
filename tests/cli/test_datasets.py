"""A dataset from the command line: killed by the kernel, resumed, every id once."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import datasets
import pytest

from tests.cli.command import SAMPLE, assert_refused, rows_by_id
from tests.cli.conftest import Caraserve
from tests.cli.forked import finish_caraserve, start_caraserve

NUM_ROWS = 2500
JOB = ("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--max-tokens", "2")
MAP = ("--map", "id=key,adapter=team", "--template", "Input: {{ word }}\nOutput: ")


def table(num_rows: int) -> datasets.Dataset:
    numbers = range(num_rows)
    teams = [["upper", "reverse", None][n % 3] for n in numbers]
    return datasets.Dataset.from_dict(
        {"key": list(numbers), "word": [f"w{n}" for n in numbers], "team": teams, "other": list(numbers)}
    )


def test_killed_and_resumed(tmp_path: Path) -> None:
    requests, out = tmp_path / "rows.parquet", tmp_path / "out"
    table(NUM_ROWS).to_parquet(requests)
    command = [*JOB, *MAP, "--out", out, requests]
    outputs = out / "outputs.jsonl"
    for wanted in (200, 1200):
        process = start_caraserve(*command, "--resume", stderr=tmp_path / "stderr")
        while not outputs.exists() or outputs.read_bytes().count(b"\n") < wanted:
            assert process.exitcode is None, (tmp_path / "stderr").read_text()
            time.sleep(0.005)
        assert process.pid is not None
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert finish_caraserve(*command, "--resume", stderr=tmp_path / "stderr") == 0
    assert set(rows_by_id(outputs)) == {str(n) for n in range(NUM_ROWS)}
    assert (out / "errors.jsonl").read_bytes() == b""


def test_answers_from_a_saved_dataset(caraserve: Caraserve, tmp_path: Path) -> None:
    table(3).save_to_disk(tmp_path / "words")
    ended = caraserve(*JOB, *MAP, "--out", tmp_path / "out", tmp_path / "words")
    assert ended.returncode == 0, ended.stderr
    rows = rows_by_id(tmp_path / "out" / "outputs.jsonl")
    assert [rows[name]["adapter"] for name in "012"] == ["upper", "reverse", None]


def test_one_line_says_what_is_wrong(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _duration_s: None)  # between the five tries to reach the Hub
    table(1).to_parquet(tmp_path / "t.parquet")
    out = ("--out", tmp_path / "out")
    assert_refused(
        caraserve(*JOB, *out, tmp_path / "t.parquet"), 1, "none of the columns prompt", "--map prompt="
    )
    assert_refused(caraserve(*JOB, *out, "hf://nobody/nothing?split=train"), 1, "hf://nobody/nothing", "Hub")
    assert_refused(caraserve(*JOB, *out, "hf://nobody/nothing?spit=train"), 1, "unknown 'spit'")
    assert_refused(caraserve(*JOB, *out, tmp_path / "no.parquet"), 1, "does not exist")
    assert_refused(caraserve(*JOB, *out, "--map", "x=y", tmp_path / "t.parquet"), 2, "--map: 'x' is no key")
