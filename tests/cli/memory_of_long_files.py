"""Peak memory of runs over long files: `python -m tests.cli.memory_of_long_files 2000 200000`.

The issue's own figures take minutes; the test beside this uses smaller ones.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cli.command import SAMPLE, user_environment, write_rows

# The run tells its own peak: the `ru_maxrss` of a child begins at the size of the process that started it,
# which, of all tests together, is larger than any run here.
TELL_PEAK = """
import sys
from caraserve_cli.cli.main import main
try:
    main()
finally:
    with open("/proc/self/status") as status:
        sys.stderr.writelines(line for line in status if line.startswith("VmHWM:"))
"""

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
    # Small batches: with 256 the largest batch that a run happens to see moved the peak by 45 MiB (50 runs of
    # 10,000 rows, 498 to 543 MiB), with 64 by 5 MiB (12 runs, 468 to 473 MiB).
    arguments = [*job, "--max-running", "64", "--out", folder / str(num_rows), requests]
    ended = subprocess.run(
        [sys.executable, "-c", TELL_PEAK, *map(str, arguments)],
        env=user_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    answered = (folder / str(num_rows) / "outputs.jsonl").read_bytes().count(b"\n")
    assert answered == num_rows
    return int(ended.stderr.splitlines()[-1].removesuffix("kB").removeprefix("VmHWM:")) * 1024


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for count in map(int, sys.argv[1:]):
            print(f"{count} requests: {peak_bytes(count, Path(name)) / 2**20:.0f} MiB")  # noqa: T201
