"""A serving benchmark and a break-even grid of the sample's shape that the CPU answers in an instant."""

from __future__ import annotations

from pathlib import Path

from tests.cli.command import SAMPLE

_ENGINE = f"""
base = "{SAMPLE / "base"}"
device = "cpu"
dtype = "float32"
kv_memory = "4MB"
host_adapter_memory = "3MB"
"""

SERVING = f"""
kind = "serving"
description = "a tiny benchmark"
warmups = 1
repeats = 2
{_ENGINE}
[[case]]
name = "distinct"
strategies = ["cached", "stream"]
rate_per_s = 50
requests = 6
lora_ranks = [2, 5]
modules = ["q_proj", "v_proj"]
prompt_tokens = 6
output_tokens = 4
ttft_slo_ms = 1e6
[[case.require]]
strategy = "stream"
mean_latency_at_most_ms = 1e6
[[case.require]]
strategy = "stream"
over = "cached"
mean_ttft_at_most = 1e6
p99_ttft_at_least = 1e-6
"""

POPULAR = """
[[case]]
name = "popular"
strategies = ["stream"]
rate_per_s = 200
requests = 6
adapters = 2
popularity = 1.5
lora_ranks = [2]
modules = ["q_proj"]
prompt_tokens = 3
output_tokens = 1
"""

GRID = f"""
kind = "arrivals"
description = "a tiny grid"
strategies = ["cached", "stream"]
warmups = 1
arrivals = 3
decoding = 2
decode_tokens = 40
cold_adapters = 2
output_tokens = 2
modules = ["q_proj", "v_proj"]
{_ENGINE}
[[case]]
name = "own link"
prompt_tokens = [3, 7]
lora_ranks = [2, 5]
"""


def write(folder: Path, text: str) -> Path:
    """A recipe's file."""
    path = folder / "mine.toml"
    path.write_text(text)
    return path
