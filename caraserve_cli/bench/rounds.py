"""A recipe measured again and again, each time in a process of its own: two runs of one process share what
differs between processes, and agree better with each other than with the next process.

Knows neither recipes nor metrics. Imports no torch.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from caraserve_cli.errors import ExitStatus, InputError

_MEASURED = (ExitStatus.OK, ExitStatus.REGRESSED, ExitStatus.CANNOT_TELL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one process measured.

    Attributes:
        result: what `--json` writes.
        printed: what it would have shown.
        exit_status: 0, or 4 or 5 where it misses the recipe's own requirements or its work was not done.
    """

    result: Mapping[str, Any]
    printed: str
    exit_status: int


def run_rounds(recipe: Path, budget_s: float, slow_decode: float | None = None) -> Iterator[Round]:
    """Measure once, then as often as asked, as long as another one as long as the longest fits the budget;
    `slow_decode` as for `run_gated`.

    Raises:
        InputError: a process ended without a result; it has said on stderr why.
    """
    started_s = time.monotonic()
    longest_s = 0.0
    while True:
        began_s = time.monotonic()
        yield _run_once(recipe, slow_decode)
        longest_s = max(longest_s, time.monotonic() - began_s)
        if time.monotonic() - started_s + longest_s > budget_s:
            return


def _run_once(recipe: Path, slow_decode: float | None) -> Round:
    with tempfile.TemporaryDirectory(prefix="caraserve-bench-") as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", "caraserve_cli", "bench", str(recipe.resolve()), "--json", str(file)]
        if slow_decode is not None:
            command += ["--slow-decode", str(slow_decode)]
        # Its tables are as wide as ours.
        env = {**os.environ, "COLUMNS": str(shutil.get_terminal_size().columns)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            try:
                printed, _ = process.communicate()
            except BaseException:
                process.terminate()
                raise
        if process.returncode not in _MEASURED or not file.is_file():
            raise InputError(
                f"bench: the process that measures '{recipe}' ended with exit status {process.returncode}"
            )
        return Round(result=json.loads(file.read_bytes()), printed=printed, exit_status=process.returncode)
