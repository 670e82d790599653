"""A disk that is full in the middle of a run: one line, nothing lost, and it goes on where there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.command import SAMPLE, assert_refused, rows_by_id, write_rows
from tests.cli.forked import run_forked

NUM_ROWS = 600
Resize = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """A small disk of its own in memory, and what gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"no disk can be mounted here: {made.stderr.decode().strip()}")
    try:
        yield folder, lambda size: _run("mount", "-o", f"remount,size={size}", str(folder))
    finally:
        _run("umount", str(folder))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def test_a_full_disk(disk: tuple[Path, Resize], tmp_path: Path) -> None:
    folder, resize = disk
    rows = [{"id": str(n), "prompt": f"w{n}", "max_tokens": 1} for n in range(NUM_ROWS)]
    requests = write_rows(tmp_path / "r.jsonl", rows)
    job = ("run", "-q", "--base", SAMPLE / "base", "--out", folder / "out", requests)
    outputs = folder / "out" / "outputs.jsonl"
    assert_refused(run_forked(*job), 1, f"'{outputs}' cannot be written: No space left", "--resume")
    written = outputs.read_bytes()
    assert written.endswith(b"\n")
    assert 0 < written.count(b"\n") < NUM_ROWS
    assert_refused(run_forked(*job, "--resume"), 1, "No space left on device", "--resume")
    resize("20m")
    ended = run_forked(*job, "--resume")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert outputs.read_bytes().startswith(written)
    assert set(rows_by_id(outputs)) == {str(n) for n in range(NUM_ROWS)}
