"""What the program's own processes import is paid for by every one of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.command import user_environment


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("caraserve_cli.fleet.following", ("transformers", "tokenizers", "huggingface_hub")),
        ("caraserve_cli.coldstart.worker", ("transformers", "triton")),
    ],
)
def test_what_is_not_needed_is_not_imported(module: str, unneeded: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {unneeded!r} if name in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", code], env=user_environment(), capture_output=True, text=True, check=True
    )
    assert ended.stdout == "[]\n"
