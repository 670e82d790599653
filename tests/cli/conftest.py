"""`caraserve` called inside this process: the same command line without the wait for another interpreter."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caraserve_cli.cli.main import main

Caraserve = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def caraserve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Caraserve]:
    """`caraserve("run", …)` runs the command and returns how it ended."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back, as the handlers are
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["caraserve", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return subprocess.CompletedProcess(args, int(ended.value.code or 0), printed.out, printed.err)

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
