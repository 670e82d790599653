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
