"""A throughput benchmark of the sample's shape that the CPU answers in an instant."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command import SAMPLE

TINY = f"""
kind = "throughput"
description = "a tiny benchmark"
base = "{SAMPLE / "base"}"
device = "cpu"
dtype = "float32"
prompt_tokens = 6
output_tokens = 4
warmups = 1
repeats = 2
kv_memory = "4MB"
host_adapter_memory = "1MB"
[[case]]
name = "base"
requests = 3
adapters = 0
at_least = 1e-6
[[case]]
name = "adapters"
requests = 3
adapters = 2
lora_ranks = [2, 5]
modules = ["q_proj", "v_proj"]
[[case]]
name = "cold"
requests = 3
adapters = 2
lora_ranks = [2, 5]
modules = ["v_proj", "q_proj"]
cold = true
"""

# Bytes of the sample's adapter of rank 5 on q and v: 6 layers of (256 + 256) + (256 + 128) elements.
RANK_5_BYTES = 6 * 5 * (512 + 384) * 4

# A pool for one of the two adapters at a time.
SMALL_POOL = f"""
[[case]]
name = "small pool"
requests = 3
adapters = 2
lora_ranks = [2, 5]
modules = ["q_proj", "v_proj"]
adapter_memory = "{RANK_5_BYTES + 256}B"
"""


def write_throughput(folder: Path, text: str = TINY) -> Path:
    """A recipe's file."""
    path = folder / "mine.toml"
    path.write_text(text)
    return path
