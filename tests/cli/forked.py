"""`caraserve` in processes of their own, forked from one that has imported torch and transformers already.

An interpreter needs 3 s of CPU time to import them, more than most runs here take. The standard library's
fork server is a fresh interpreter that imports what it is told and then only forks. No thread may be running
in it then: with one OpenMP thread torch starts none, and each child looks.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.cli.command import ROOT, user_environment

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["caraserve_cli.cli.app", "caraserve_cli.cli.progress", "caraserve_cli.job.run"]
)


def start_caraserve(*args: str | Path, stderr: Path) -> ForkServerProcess:
    """Start `caraserve ARGS…`; stdout is dropped. Its `pid` can be sent signals; its `exitcode` is that of
    the command, or minus the signal that ended it."""
    process = _CONTEXT.Process(
        target=_main, args=([*map(str, args)], user_environment(), stderr), daemon=True
    )
    process.start()
    return process


def run_forked(*args: str | Path, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run `caraserve ARGS…` to its end, with nothing to read: as `run_caraserve` does, where it is no matter
    what is imported when.

    Args:
        before: Python code that the process runs first.
    """
    with tempfile.TemporaryDirectory() as name:
        out, err = (Path(name) / stream for stream in ("stdout", "stderr"))
        process = _CONTEXT.Process(
            target=_main, args=([*map(str, args)], user_environment(), err, out, before), daemon=True
        )
        process.start()
        status = _join(process, 300)
        return subprocess.CompletedProcess(args, status, out.read_text(), err.read_text())


def finish_caraserve(*args: str | Path, stderr: Path, timeout_s: float = 300) -> int:
    """Run `caraserve ARGS…` to its end; its exit status."""
    return _join(start_caraserve(*args, stderr=stderr), timeout_s)


def _join(process: ForkServerProcess, timeout_s: float) -> int:
    process.join(timeout_s)
    assert process.exitcode is not None, "it takes too long"
    return process.exitcode


def _main(
    args: list[str],
    environment: dict[str, str],
    stderr: Path,
    stdout: Path = Path(os.devnull),
    before: str = "",
) -> None:
    num_threads = len(os.listdir(f"/proc/{os.getppid()}/task"))
    assert num_threads == 1, "a fork of a process with threads may hang"
    assert "caraserve_cli.job.run" in sys.modules, "nothing was imported ahead"
    from caraserve_cli.cli.main import main

    with stderr.open("wb") as err, stdout.open("wb") as out:
        os.dup2(err.fileno(), sys.stderr.fileno())
        os.dup2(out.fileno(), sys.stdout.fileno())
    os.environ.clear()  # it is that of who forks, which was started before
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = ["caraserve", *args]
    exec(before, {})
    main()
