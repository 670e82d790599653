"""`--tensor-parallel 2`: the sample's answers, and that no process outlives another, however one of them
ends."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import psutil

from tests.cli.command import (
    ROOT,
    SAMPLE,
    assert_refused,
    caraserve_command,
    rows_by_id,
    user_environment,
)
from tests.cli.forked import run_forked

# Longer than a busy machine needs for a process to start, or to end.
_PATIENCE_S = 120.0
JOB = ("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", SAMPLE / "requests.jsonl")
LONG = (*JOB, "--tensor-parallel", "2", "--max-running", "4", "--ignore-eos", "--max-tokens", "100")


def test_the_sample_is_exact(tmp_path: Path) -> None:
    ended = run_forked(*JOB, "--tensor-parallel", "2", "--out", tmp_path, "--dtype", "float32")
    assert ended.returncode == 0, ended.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["exact_match"] == {"right": 86, "scored": 86, "accuracy": 1.0}
    assert report["run"]["options"]["tensor_parallel"] == 2
    assert "over 2 processes" in report["run"]["device"]
    assert "in each of 2 processes" in report["run"]["memory"]
    assert "Warning" not in ended.stderr


class _Run:
    """A run that has answered something more, and the process that holds the base with it."""

    def __init__(self, out: Path, *more: str) -> None:
        self.answers = out / "outputs.jsonl"
        size = self.answers.stat().st_size if self.answers.exists() else 0
        self.process = subprocess.Popen(
            caraserve_command(*LONG, "--out", out, *more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env=user_environment(),
        )
        until_s = time.monotonic() + _PATIENCE_S
        while not (self.answers.exists() and self.answers.stat().st_size > size):
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < until_s
            time.sleep(0.02)
        (self.other,) = psutil.Process(self.process.pid).children()

    def ended(self) -> tuple[int, list[str]]:
        """Exit status and what was said on stderr, when both processes are gone."""
        _, stderr = self.process.communicate(timeout=_PATIENCE_S)
        self.other.wait(timeout=_PATIENCE_S)
        return self.process.returncode, stderr.decode().splitlines()


def test_a_process_that_is_killed_ends_the_run_in_one_line(tmp_path: Path) -> None:
    run = _Run(tmp_path / "out")
    run.other.send_signal(signal.SIGKILL)
    exit_status, lines = run.ended()
    assert exit_status == 1
    advice = "what is answered is kept: go on with --resume"
    assert lines[-1] == f"caraserve: process 1 of --tensor-parallel 2 was killed (SIGKILL); {advice}"
    assert not [line for line in lines if "Traceback" in line or "Error" in line]
    answered = rows_by_id(run.answers)

    resumed = _Run(tmp_path / "out", "--resume")
    resumed.process.send_signal(signal.SIGINT)
    exit_status, lines = resumed.ended()
    assert exit_status == 130
    assert lines[-1].startswith("Stopped. To go on: ")
    all_answered = rows_by_id(run.answers)
    assert answered.items() < all_answered.items()


def test_none_outlives_the_first(tmp_path: Path) -> None:
    run = _Run(tmp_path / "out")
    run.process.kill()
    assert run.ended()[0] == -signal.SIGKILL


def test_several_replicas_of_several_processes_are_refused(tmp_path: Path) -> None:
    ended = run_forked(*JOB, "--tensor-parallel", "2", "--replicas", "2", "--out", tmp_path / "out")
    assert_refused(ended, 2, "--tensor-parallel", "--replicas")
