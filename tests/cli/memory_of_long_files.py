"""Peak memory of runs over long files: `python -m tests.cli.memory_of_long_files 2000 200000`.

The issue's own figures take minutes; the test beside this uses smaller ones.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cli.command import SAMPLE, caraserve_command, user_environment, write_rows

ADAPTERS = (None, "upper", "reverse", "sort", "team/roman", "spell")


def peak_bytes(num_rows: int, folder: Path) -> int:
    """Peak resident memory of `caraserve run` over so many requests of one output token each."""
    chance = random.Random(0)
    rows = (
        {
            "id": f"request-{number}",
            "prompt": "Input: " + "".join(chance.choices("abcdefgh", k=3)),
            "adapter": ADAPTERS[number % len(ADAPTERS)],
            "max_tokens": 1,
        }
        for number in range(num_rows)
    )
    requests = write_rows(folder / f"{num_rows}.jsonl", list(rows))
    job = ["run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--kv-memory", "64MiB"]
    process = subprocess.Popen(
        caraserve_command(*job, "--out", folder / str(num_rows), requests),
        env=user_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"the run ended with {process.returncode}"
    answered = (folder / str(num_rows) / "outputs.jsonl").read_bytes().count(b"\n")
    assert answered == num_rows
    return usage.ru_maxrss * 1024


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for count in map(int, sys.argv[1:]):
            print(f"{count} requests: {peak_bytes(count, Path(name)) / 2**20:.0f} MiB")  # noqa: T201
