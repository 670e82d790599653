"""Arrivals at an H200 with Llama-2-7B."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from caraserve_cli.coldstart.arrival import Arrival
from tests.perf.h200 import adapter_bytes


def arrival(*, prompt_tokens: int = 128, lora_rank: int = 64, **changes: Any) -> Arrival:
    """A cold arrival beside 8 decoding requests, an adapter on q, k, v, o."""
    usual = Arrival(
        prompt_tokens=prompt_tokens,
        max_output_tokens=128,
        lora_rank=lora_rank,
        adapter_bytes=adapter_bytes(lora_rank),
        num_layers=32,
        batch_tokens=8,
        num_decoding=8,
        link_backlog_ms=0.0,
        free_workers=15,
        can_assist=True,
    )
    return replace(usual, **changes)


def alone(**changes: Any) -> Arrival:
    """The same on an idle machine."""
    return arrival(**{"num_decoding": 0, "batch_tokens": 0, **changes})
