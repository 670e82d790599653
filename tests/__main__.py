"""Everything that must hold before a change lands: `python -m tests`.

Lint, format, types and import rules first, since they fail fastest; then the tests.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
    ("lint-imports",),
    # What was skipped is told, with the reason, and what took long.
    ("pytest", "-rs", "--durations=25", "-n", "auto", "--dist", "loadscope"),
)


def main() -> int:
    bin_folder = Path(sys.executable).parent
    for command in CHECKS:
        print("+", *command, flush=True)  # noqa: T201
        status = subprocess.run([bin_folder / command[0], *command[1:]], cwd=ROOT, check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
