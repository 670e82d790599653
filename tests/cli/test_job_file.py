"""`caraserve run job.toml`, the environment, --print-config, -q, --version and completion."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.command import (
    SAMPLE,
    assert_refused,
    caraserve_command,
    read_rows,
    user_environment,
    write_rows,
)
from tests.cli.conftest import Caraserve

JOB = {
    "base": str(SAMPLE / "base"),
    "adapters": [str(SAMPLE / "adapters")],
    "max-tokens": 5,
    "stop": ["\n", "#\u007f"],
    "limit": 4,
}


@pytest.fixture
def job(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Input: {word}", "ignore_eos": True} for word in ("cat", "dog", "owl")]
    requests = write_rows(tmp_path / "rows.jsonl", rows)
    values = {**JOB, "requests": str(requests), "out": str(tmp_path / "out")}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    return write(tmp_path / "job.toml", "\n".join(lines))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_run_from_a_file_quietly(caraserve: Caraserve, job: Path, tmp_path: Path) -> None:
    ended = caraserve("run", job, "-q", "--limit", "2")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    rows = read_rows(tmp_path / "out" / "outputs.jsonl")
    assert len(rows) == 2
    assert max(row["completion_tokens"] for row in rows) == 5


def test_who_wins(caraserve: Caraserve, job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARASERVE_RUN_LIMIT", "7")
    monkeypatch.setenv("CARASERVE_RUN_MAX_TOKENS", "6")
    lines = caraserve("run", job, "--print-config", "--limit", "2").stdout.splitlines()
    assert "limit = 2  # command line" in lines
    assert "max_tokens = 6  # environment" in lines
    assert f'base = "{SAMPLE / "base"}"  # job file' in lines
    assert "seed = 0" in lines


def test_what_is_printed_is_a_job_file(caraserve: Caraserve, job: Path, tmp_path: Path) -> None:
    printed = caraserve("run", job, "--print-config")
    assert printed.returncode == 0, printed.stderr
    assert not (tmp_path / "out").exists()
    again = caraserve("run", write(tmp_path / "again.toml", printed.stdout), "--print-config")
    values = [[line.partition("  # ")[0] for line in each.stdout.splitlines()] for each in (printed, again)]
    assert values[0] == values[1]
    assert (
        json.loads(next(line for line in values[0] if line.startswith("stop =")).partition("=")[2])
        == JOB["stop"]
    )


def test_a_table_of_columns(caraserve: Caraserve, job: Path) -> None:
    write(job, job.read_text() + '\n[map]\nprompt = "question"\nid = "key"\n')
    assert 'map = ["prompt=question", "id=key"]' in caraserve("run", job, "--print-config").stdout


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("max_token = 3", "'max_token' is no option of run; did you mean 'max_tokens'?"),
        ("print_config = true", "'print_config' is no option of run"),
        ('resume = "yes"', 'resume must be true or false, got "yes"'),
        ("max_tokens = true", "max_tokens must be a string or a number, got true"),
        ("base = ['a', 'b']", "base must be one value, got a list"),
        ("stop = [1979-05-27]", 'stop must be a string or a number, or a list, got "1979-05-27"'),
        ("max_tokens = ", "is no TOML"),
        ('max_tokens = "many"', "--max-tokens"),
    ],
)
def test_a_wrong_file_is_refused(caraserve: Caraserve, tmp_path: Path, text: str, said: str) -> None:
    assert_refused(caraserve("run", write(tmp_path / "job.toml", text)), 2, said)


def test_files_that_are_not_one(caraserve: Caraserve, job: Path, tmp_path: Path) -> None:
    assert_refused(caraserve("run", tmp_path / "no.toml"), 2, "no.toml' cannot be read: No such file")
    assert_refused(caraserve("run", job, tmp_path / "two.toml"), 2, "are job files; give one")


def test_a_variable_that_no_option_reads(caraserve: Caraserve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARASERVE_RUN_MAX_TOKEN", "6")
    assert_refused(
        caraserve("run"), 2, "'CARASERVE_RUN_MAX_TOKEN'", "did you mean 'CARASERVE_RUN_MAX_TOKENS'?"
    )


def test_the_version_names_libraries(caraserve: Caraserve) -> None:
    names = [line.split()[0] for line in caraserve("--version").stdout.splitlines()]
    assert names[:3] == ["caraserve", "Python", "torch"]


def test_a_shell_completes_options() -> None:
    shell = {"_CARASERVE_COMPLETE": "complete_bash", "COMP_WORDS": "caraserve run --max-", "COMP_CWORD": "2"}
    ended = subprocess.run(
        caraserve_command(), env={**user_environment(), **shell}, capture_output=True, text=True, check=False
    )
    assert ended.stdout.split() == ["--max-running", "--max-batch-tokens", "--max-tokens"]
    assert os.linesep not in ended.stderr
