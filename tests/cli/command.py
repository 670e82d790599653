"""The command line as a user meets it: another process, its exit status, and what it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "sample_data"

Row = dict[str, Any]


def caraserve_command(*args: str | Path) -> list[str]:
    """The command line that a user would write as `caraserve ARGS…`."""
    return [sys.executable, "-m", "caraserve_cli", *map(str, args)]


def user_environment() -> dict[str, str]:
    """This process's environment with the checkout first, and one thread: tests run side by side."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def run_caraserve(
    *args: str | Path, stdin: bytes | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run `caraserve ARGS…` to its end; without `stdin` there is none to read."""
    ended = subprocess.run(
        caraserve_command(*args),
        input=b"" if stdin is None else stdin,
        capture_output=True,
        cwd=cwd,
        env=user_environment(),
        timeout=300,
        check=False,
    )
    return subprocess.CompletedProcess(
        ended.args, ended.returncode, ended.stdout.decode(), ended.stderr.decode()
    )


def assert_refused(ended: subprocess.CompletedProcess[str], exit_status: int, *fragments: str) -> None:
    """It ended with one line on stderr, that holds all `fragments`, and nothing on stdout."""
    assert ended.returncode == exit_status, ended.stderr
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("caraserve: ")
    missing = [fragment for fragment in fragments if fragment not in lines[0]]
    assert missing == [], lines[0]


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """A requests file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[Row]:
    """The lines of outputs.jsonl or errors.jsonl."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def rows_by_id(path: Path) -> dict[str, Row]:
    """The same by id, each of which may occur only once."""
    rows = read_rows(path)
    by_id = {row["id"]: row for row in rows}
    assert len(by_id) == len(rows), "an id occurs twice"
    return by_id
