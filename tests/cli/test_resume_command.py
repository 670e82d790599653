"""The command that goes on with a run, as a shell takes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from caraserve_cli.cli.resume_command import from_anywhere, resume_command
from tests.cli.command import SAMPLE, assert_refused, write_rows
from tests.cli.conftest import Caraserve


@pytest.mark.parametrize("shell", [["sh", "-c"], ["bash", "-c"]], ids=lambda shell: str(shell[0]))
def test_a_shell_takes_it_for_what_was_typed(shell: list[str]) -> None:
    """What was typed is one line, whatever is in it."""
    typed = ["a b", "day-*.jsonl", "it's", '$HOME `id` "x"', "", "\\"]
    if shell[0] == "bash":
        typed += ["Q: {{ question }}\nA: 's'\\n\t", "\u2028\x85", "\udcff.jsonl"]
    command = resume_command(["program", "run", "--", *typed], {})
    assert len(command.splitlines()) == 1
    show = (
        f"program() {{ '{sys.executable}' -c 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\"; }}"
    )
    told = subprocess.run([*shell, f"{show}; {command}"], capture_output=True, text=True, check=True)
    assert json.loads(told.stdout) == ["run", "--resume", "--", *typed]


def test_variables_and_an_earlier_resume_are_kept() -> None:
    environment = {"CARASERVE_RUN_STOP": "a b", "CARASERVE_RUN_SEED": "", "HOME": "/root"}
    told = resume_command(["caraserve", "run", "r.jsonl", "--resume"], environment)
    assert told == "CARASERVE_RUN_STOP='a b' caraserve run r.jsonl --resume"
    told = resume_command(["/x/caraserve_cli/__main__.py", "run"], {})
    assert told == f"{sys.executable} -m caraserve_cli run --resume"


def test_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my jobs").mkdir()
    monkeypatch.chdir(tmp_path / "my jobs")
    assert from_anywhere("caraserve run --resume") == f"cd '{tmp_path}/my jobs' && caraserve run --resume"


def test_who_has_lost_the_command_is_told_it(
    caraserve: Caraserve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    requests = write_rows(tmp_path / "r.jsonl", [{"prompt": "a", "max_tokens": 1}])
    job = ("run", "--base", SAMPLE / "base", "--seed", "7", requests.name)
    assert caraserve(*job, "--out", "out").returncode == 0
    rest = f"--base {SAMPLE / 'base'} --seed 7 r.jsonl --out out"
    command = f"`cd {tmp_path} && caraserve run --resume {rest}`"
    assert_refused(caraserve("run", "--out", "out"), 1, "'out' is not empty", command)
    assert_refused(caraserve("run", "--out", "out", "--resume"), 1, "seed was 7, now is 0", command)
