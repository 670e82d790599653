"""A benchmark of CPU workers of the sample's shape, with two real ones, that the CPU measures in seconds."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command import SAMPLE

TINY = f"""
kind = "assist"
description = "a tiny benchmark"
base = "{SAMPLE / "base"}"
device = "cpu"
dtype = "float32"
warmups = 1
repeats = 2
cpu_workers = 2
modules = ["o_proj", "v_proj", "q_proj"]
lora_ranks = [16]
prompt_tokens = [1, 40]
[[require]]
prompt_tokens = 40
lora_rank = 16
speedup_at_least = 1e-9
peak_share_at_least = 1e-9
"""


def write_assist(folder: Path, text: str = TINY) -> Path:
    """A recipe's file."""
    path = folder / "mine.toml"
    path.write_text(text)
    return path
