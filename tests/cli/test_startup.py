"""Nothing heavy is imported before it is needed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cli.command import user_environment

HEAVY = ("torch", "transformers", "numpy", "datasets", "triton", "safetensors", "rich.markdown")

PROMISED = {
    "run": (
        *("--base", "--adapters", "--out", "--device", "--dtype", "--token-ids", "--resume", "--limit"),
        *("--retry-errors", "--dry-run", "--weights", "--adapter-memory", "--host-adapter-memory"),
        *("--max-tokens", "--temperature", "--deadline-ms", "--lora-kernel", "--prefill-chunk-tokens"),
        *("--prefix-caching", "--no-prefix-caching", "--repetition-penalty"),
    ),
    "bench": ("--list", "--json"),
    "adapters": ("--base", "--search", "--sort", "--json"),
}
PANELS = ["Options", "Stopping and going on", "Memory and batches", "Defaults for rows that leave a key out"]


# What reads a recipe fits lines.
TO_READ_RECIPES = "numpy"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["bench", "--list"]], ids=str)
def test_the_overview_imports_nothing_heavy(arguments: list[str]) -> None:
    """Import times would be a clock; what is imported is not."""
    heavy = tuple(name for name in HEAVY if name != TO_READ_RECIPES or "bench" not in arguments)
    code = (
        "import sys\n"
        f"sys.argv = ['caraserve', *{arguments!r}]\n"
        "from caraserve_cli.cli.main import main\n"
        "try:\n    main()\n"
        f"finally:\n    print('HEAVY', [name for name in {heavy!r} if name in sys.modules])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env=user_environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("command", PROMISED)
def test_help_of_each_command(command: str, columns: int) -> None:
    """Every name in full, however narrow the terminal."""
    ended = subprocess.run(
        [sys.executable, "-m", "caraserve_cli", command, "--help"],
        env={**user_environment(), "COLUMNS": str(columns)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    words = ended.stdout.split()
    assert [option for option in PROMISED[command] if option not in words] == []
    assert "…" not in ended.stdout
    if command == "run":
        headings = [line.rstrip(":") for line in ended.stdout.splitlines() if line.endswith(":")]
        assert [heading for heading in headings if heading in PANELS] == PANELS


KEPT = """
import atexit, os, sys
class Kept:
    def __del__(self, write=os.write):
        write(1, b"taken apart\\n")
sys.kept = Kept()
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            atexit.register(print, "said at the end")
sys.meta_path.insert(0, Finder())
sys.argv = ["caraserve", "adapters", "there is none"]
from caraserve_cli.cli.main import {main}
{main}()
"""


@pytest.mark.parametrize("main", ["main", "program"])
def test_the_process_ends_as_others_do_but_takes_no_modules_apart(main: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KEPT.format(main=main)],
        env=user_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (2, "caraserve: DIR: there is none does not exist\n")
    assert ended.stdout.splitlines() == ["said at the end"] + ["taken apart"] * (main == "main")
