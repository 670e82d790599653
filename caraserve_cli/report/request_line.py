"""One answer in a line, for people who watch a run. Knows the keys of output lines."""

from __future__ import annotations

from collections.abc import Mapping

_TIMES = (("queue_ms", "queued"), ("ttft_ms", "TTFT"), ("tpot_ms", "TPOT"), ("latency_ms", "latency"))


def told(row: Mapping[str, object]) -> str:
    """Of an output line in our own form, say `id r1: team/summarise (stream), 12 + 40 tokens, length, queued
    0.3 ms, TTFT 8.1 ms, latency 90.2 ms, SLO met`."""
    adapter = "the base" if row["adapter"] is None else f"{row['adapter']} ({row['cold_start']})"
    parts = [
        adapter,
        f"{row['prompt_tokens']} + {row['completion_tokens']} tokens",
        str(row["finish_reason"]),
    ]
    for key, name in _TIMES:
        value = row[key]
        if isinstance(value, (int, float)):
            parts.append(f"{name} {value:,.1f} ms")
    if row["slo_attained"] is not None:
        parts.append("SLO met" if row["slo_attained"] else "SLO missed")
    return f"id {row['id']}: {', '.join(parts)}"
