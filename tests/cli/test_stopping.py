"""Ctrl-C and SIGTERM before the first answer: one line, exit status 130, nothing answered."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from caraserve_cli.job.stop_request import StopRequest
from tests.cli.command import SAMPLE, user_environment
from tests.cli.forked import run_forked

SIGNALS = [signal.SIGINT, signal.SIGTERM]
STOPPED = "caraserve: stopped before anything was answered\n"
JOB = ("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", SAMPLE / "requests.jsonl")

# A process that gets the signal just when it imports a module, or calls a function of ours.
WHILE_IMPORTING = """
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == WHERE:
            SEND()
sys.meta_path.insert(0, Finder())
"""
IN_A_DEL = """
class Dying:
    def __del__(self):
        SEND()
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == WHERE:
            Dying()
sys.meta_path.insert(0, Finder())
"""
IN_A_CALL = """
import importlib
module, owner, function = WHERE.split(":")
owner = getattr(importlib.import_module(module), owner)
def dying(*args, called=getattr(owner, function), **options):
    class Dying:
        def __del__(self):
            SEND()
    Dying()
    return called(*args, **options)
setattr(owner, function, dying)
"""


def sending(where: str, how: str, number: signal.Signals) -> str:
    """The code that a process has to run first."""
    return (
        f"import os, signal, sys\nWHERE = {where!r}\nNUMBER = {int(number)}\n"
        "def SEND():\n"
        "    os.kill(os.getpid(), NUMBER)\n"
        "    for _ in range(1000): pass\n"
        f"{how}\n"
    )


def stopped_importing(where: str, how: str, number: signal.Signals, out: Path) -> CompletedProcess[str]:
    code = (
        f"{sending(where, how, number)}"
        "from caraserve_cli.cli.main import program\n"
        f"sys.argv = {['caraserve', *map(str, JOB), '--out', str(out)]!r}\n"
        "program()\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env=user_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def stopped_calling(where: str, number: signal.Signals, out: Path, *more: str) -> CompletedProcess[str]:
    return run_forked(*JOB, "--out", out, *more, before=sending(where, IN_A_CALL, number))


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("where", ["typer", "torch", "caraserve_cli.job.run"])
@pytest.mark.parametrize("how", [WHILE_IMPORTING, IN_A_DEL], ids=["raised", "swallowed"])
def test_while_a_library_is_imported(tmp_path: Path, where: str, how: str, number: signal.Signals) -> None:
    out = tmp_path / "out"
    ended = stopped_importing(where, how, number, out)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", STOPPED)
    assert not out.exists()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "where",
    ["caraserve_cli.fleet.local:Surroundings:prepare", "caraserve_cli.fleet.local:LocalReplica:_make_runner"],
)
def test_while_a_replica_starts(tmp_path: Path, where: str, number: signal.Signals) -> None:
    """Swallowed there too; the replica is ready before anybody looks."""
    out = tmp_path / "out"
    ended = stopped_calling(where, number, out)
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr.splitlines()[-1] == STOPPED.rstrip()
    assert "Traceback" not in ended.stderr
    assert not (out / "outputs.jsonl").exists() or not (out / "outputs.jsonl").read_bytes()


def test_a_dry_run_that_is_stopped(tmp_path: Path) -> None:
    where = "caraserve_cli.job.check:Surroundings:prepare"
    ended = stopped_calling(where, signal.SIGINT, tmp_path / "out", "--dry-run")
    assert (ended.returncode, ended.stdout) == (130, "")
    assert ended.stderr == "caraserve: stopped before all was checked\n"


def test_a_first_wish_lets_a_step_finish_and_a_second_one_ends_the_process() -> None:
    stop = StopRequest()
    stop.finish_steps()
    stop.ask()
    assert stop.is_asked
    assert not stop.breaks_off
    with pytest.raises(SystemExit):
        stop.ask()


def test_a_start_up_between_steps_is_broken_off() -> None:
    stop = StopRequest()
    stop.finish_steps()
    with pytest.raises(KeyboardInterrupt), stop.breaking_off():
        stop.ask()
    assert stop.breaks_off
