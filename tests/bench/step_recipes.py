"""A benchmark of steps of the sample's shape that the CPU answers in an instant."""

from __future__ import annotations

from tests.cli.command import SAMPLE

TINY_STEPS = f"""
kind = "steps"
description = "a tiny benchmark"
base = "{SAMPLE / "base"}"
device = "cpu"
dtype = "float32"
warmups = 1
repeats = 2
kv_memory = "4MB"
host_adapter_memory = "1MB"
max_running = 4
max_batch_tokens = 12
[[case]]
name = "base"
requests = 3
adapters = 0
measure = "decode"
prompt_tokens = 6
output_tokens = 8
at_most = 1e9
[[case]]
name = "adapters"
requests = 3
adapters = 2
lora_ranks = [2, 5]
modules = ["q_proj", "v_proj"]
measure = "decode"
prompt_tokens = 6
output_tokens = 8
without = "base"
lora_at_most = 1e9
lora_share_at_most = 1.0
[[case]]
name = "prefill"
requests = 4
adapters = 2
lora_ranks = [2, 5]
modules = ["q_proj", "v_proj"]
measure = "prefill"
prompt_tokens = 6
output_tokens = 1
rate_at_least = 1e-9
"""
