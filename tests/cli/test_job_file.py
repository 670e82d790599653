"""`caraserve run job.toml`, the environment, --print-config, -q, --version and completion."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
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


def test_what_is_printed_is_a_job_without_what_is_about_one_call(caraserve: Caraserve, job: Path) -> None:
    """And shows the options that have no value, as comments."""
    of_one_call = ("-q", "--resume", "--retry-errors", "--dry-run")
    printed = caraserve("run", job, "--print-config", *of_one_call, "--emulate-link-gbps", "inf").stdout
    lines = printed.splitlines()
    assert "# deadline_ms: not set" in lines
    assert "# map: not set" in lines
    values = tomllib.loads(printed)
    assert values["emulate_link_gbps"] == float("inf")
    assert values.keys().isdisjoint(("resume", "retry_errors", "dry_run", "quiet", "verbose", "print_config"))
    shown = {line.split()[1].rstrip(":") for line in lines if line.startswith("# ")} | values.keys()
    assert {"requests", "base", "adapter", "stop_token_ids", "kv_memory", "ray", "cpu_workers"} <= shown


def test_a_job_file_stands_anywhere(caraserve: Caraserve, job: Path, tmp_path: Path) -> None:
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": "a"}])
    before, after = (caraserve("run", *files, "--print-config") for files in ((job, other), (other, job)))
    assert f'requests = ["{other}"]  # command line' in before.stdout.splitlines()
    assert before.stdout == after.stdout


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
        ("base = ['a', 'b']", 'base must be one value, got ["a", "b"]'),
        ("stop = [1979-05-27]", 'stop must be a string or a number, or a list, got "1979-05-27"'),
        ("max_tokens = ", "is no TOML"),
        ('max-tokens = "many"', """(max-tokens = "many" in job file '"""),
        ("limit = 0", "(limit = 0 in job file '"),
        ("top_p = 3", "got 3.0 (top_p = 3 in job file '"),
        ('arrivals = "gamma"', "it needs --rate, the mean of requests a second (arrivals = "),
    ],
)
def test_a_wrong_file_is_refused(caraserve: Caraserve, tmp_path: Path, text: str, said: str) -> None:
    job = write(tmp_path / "job.toml", text)
    assert_refused(caraserve("run", job), 2, said, f"job file '{job}'")


@pytest.mark.parametrize(
    ("name", "text", "exit_status", "said"),
    [
        ("MAX_TOKENS", "many", 2, '(CARASERVE_RUN_MAX_TOKENS="many")'),
        ("RESUME", "perhaps", 2, '(CARASERVE_RUN_RESUME="perhaps")'),
        ("STOP_TOKEN_IDS", "1 x", 2, '(CARASERVE_RUN_STOP_TOKEN_IDS="1 x")'),
        ("RATE", "-1", 2, 'got -1 (CARASERVE_RUN_RATE="-1")'),
        ("PLACEMENT", "a" * 99, 2, f'(CARASERVE_RUN_PLACEMENT="{"a" * 58}…)'),
        # A message that names the value only.
        ("REQUESTS", "no.jsonl", 1, '(CARASERVE_RUN_REQUESTS="no.jsonl")'),
        (
            "STOP",
            "[END]",
            2,
            'CARASERVE_RUN_STOP: a value that begins with [ is a JSON list; if it is a text, write ["[END]"]',
        ),
        ("STOP", "[true]", 2, "CARASERVE_RUN_STOP must be a string or a number, or a list, got true"),
    ],
)
def test_a_wrong_variable_is_refused(
    caraserve: Caraserve, monkeypatch: pytest.MonkeyPatch, name: str, text: str, exit_status: int, said: str
) -> None:
    monkeypatch.setenv(f"CARASERVE_RUN_{name}", text)
    assert_refused(caraserve("run"), exit_status, said)


def test_what_is_wrong_on_the_command_line_is_from_nowhere_else(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARASERVE_RUN_MIN_P", "0.1")
    ended = caraserve("run", write(tmp_path / "job.toml", "top_p = 0.5"), "--top-p", "3")
    assert_refused(ended, 2, "got 3.0")
    assert "(" not in ended.stderr


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("STOP", "end of it", ["end of it"]),
        ("STOP", '["end of", "\\n", "it"]', ["end of", "\n", "it"]),
        ("STOP_TOKEN_IDS", "1 2", [1, 2]),
        ("STOP_TOKEN_IDS", "[1, 2]", [1, 2]),
        ("ADAPTERS", "a b", ["a", "b"]),
        ("ADAPTERS", '["a b"]', ["a b"]),
        ("MAP", "prompt=question id=key", ["prompt=question", "id=key"]),
        ("MAP", '["prompt=the question"]', ["prompt=the question"]),
    ],
)
def test_a_list_in_a_variable(
    caraserve: Caraserve,
    job: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    text: str,
    values: list[object],
) -> None:
    monkeypatch.setenv(f"CARASERVE_RUN_{name}", text)
    assert tomllib.loads(caraserve("run", job, "--print-config").stdout)[name.lower()] == values


def test_files_that_are_not_one(caraserve: Caraserve, job: Path, tmp_path: Path) -> None:
    assert_refused(caraserve("run", tmp_path / "no.toml"), 2, "no.toml' cannot be read: No such file")
    assert_refused(caraserve("run", job, tmp_path / "two.toml"), 2, "are job files; give one")


def test_a_variable_that_no_option_reads(caraserve: Caraserve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARASERVE_RUN_MAX_TOKEN", "6")
    assert_refused(
        caraserve("run"), 2, "'CARASERVE_RUN_MAX_TOKEN'", "did you mean 'CARASERVE_RUN_MAX_TOKENS'?"
    )
    assert caraserve("run", "--help").returncode == 0


def test_a_variable_that_looks_like_one(caraserve: Caraserve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told before what its being ignored may lead to."""
    for name in ("BASE", "MY_OWN", "BROWSER", "COMMIT"):
        monkeypatch.setenv(f"CARASERVE_{name}", "a")
    warnings = [
        "caraserve: warning: the variable 'CARASERVE_BASE' is not read; did you mean 'CARASERVE_RUN_BASE'?",
        "caraserve: warning: the variable 'CARASERVE_MY_OWN' is not read; "
        "variables of run begin with CARASERVE_RUN_",
    ]
    ended = caraserve("run", "rows.jsonl", "--adapters", "a")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[:-1] == warnings
    assert caraserve("run", "--print-config").stderr.splitlines() == warnings
    assert caraserve("run", "--print-config", "-q").stderr == ""


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
