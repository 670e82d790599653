"""A benchmark of pairs of three of the sample's requests."""

from __future__ import annotations

from pathlib import Path

from tests.bench.conftest import ROWS
from tests.cli.command import SAMPLE, write_rows

TINY_PAIRED = f"""
kind = "paired"
description = "a tiny benchmark"
batch_size = 3
repeats = 2
[workload]
base = "{SAMPLE / "base"}"
adapters = ["{SAMPLE / "adapters"}"]
requests = "requests.jsonl"
output_tokens = 5
[[case]]
name = "mixed"
[[case]]
name = "base"
without_adapters = true
"""


def write_paired(folder: Path, text: str = TINY_PAIRED) -> Path:
    """The recipe in a file, its requests beside it."""
    write_rows(folder / "requests.jsonl", ROWS)
    recipe = folder / "pairs.toml"
    recipe.write_text(text)
    return recipe
