"""A benchmark of the simulator of the sample's shape that the CPU answers in an instant."""

from __future__ import annotations

from tests.cli.command import SAMPLE

SIMULATOR = f"""
kind = "simulator"
description = "a tiny benchmark"
warmups = 1
base = "{SAMPLE / "base"}"
device = "cpu"
dtype = "float32"
kv_memory = "4MB"
host_adapter_memory = "3MB"
[[case]]
name = "mixed"
rates_per_s = [40, 80]
requests = 6
adapters = 4
popularity = 1.0
lora_ranks = [2, 5]
modules = ["q_proj", "v_proj"]
prompt_tokens = 6
output_tokens = 4
ttft_slo_ms = 1e6
within = 1e9
attainment_within = 1
"""
