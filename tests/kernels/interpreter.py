"""Kernels in Triton's interpreter, which is chosen when Triton is imported: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def run_interpreted(cases_file: str) -> None:
    """Run the cases of a file beside this one. Without pytest's installed plugins, of which they use none and
    which take as long to import as torch."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name(cases_file))],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
