"""A benchmark of operators of the sample's shape that the CPU measures in seconds."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command import SAMPLE

HEAD = f"""
kind = "kernels"
description = "a tiny benchmark"
base = "{SAMPLE / "base"}"
device = "cpu"
dtype = "float32"
repeats = 2
"""

SECTIONS = """
modules = ["v_proj", "q_proj", "down_proj"]
[[products]]
tokens = 3
at_most_us = 1e9
at_most = 1e9
[[products]]
tokens = 1
[[attention]]
requests = 3
context_tokens = 21
at_most_us = 1e9
[[attention]]
phase = "prefill"
requests = 2
context_tokens = 17
[[lora]]
name = "decode"
tokens = 4
adapters = 2
lora_ranks = [2, 5]
at_most_us = 1e9
[[lora]]
name = "prefill"
phase = "prefill"
tokens = 6
adapters = 3
lora_ranks = [4]
[[forms]]
name = "mixed"
mix = [{ adapters = 2, lora_rank = 3 }, { adapters = 1, lora_rank = 7 }]
bgmv_at_least = 1e-9
mbgmv_at_most = 1e9
[[fit]]
batch_sizes = [1, 3]
largest_ranks = [2, 6]
layers = 2
[[loads]]
lora_rank = 5
layer_at_most = 1e9
"""

TINY = HEAD + SECTIONS


def write_kernels(folder: Path, text: str = TINY) -> Path:
    """A recipe's file."""
    path = folder / "mine.toml"
    path.write_text(text)
    return path
