"""Everything that must hold before a change lands: `python -m tests`.

Lint, format and import rules first, since they fail fastest; then the tests, and types beside them: the tests
leave cores idle, and neither needs the other.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
FIRST = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("lint-imports",))
TOGETHER = (
    ("mypy",),
    # What was skipped is told, with the reason, and what took long.
    ("pytest", "-rs", "--durations=25", "-n", "auto", "--dist", "loadscope"),
)


def run(command: tuple[str, ...]) -> int:
    print("+", *command, flush=True)  # noqa: T201
    program = Path(sys.executable).parent / command[0]
    return subprocess.run([program, *command[1:]], cwd=ROOT, check=False).returncode


def main() -> int:
    for command in FIRST:
        if status := run(command):
            return status
    with ThreadPoolExecutor() as pool:
        return max(pool.map(run, TOGETHER), key=abs)


if __name__ == "__main__":
    sys.exit(main())
