"""The slowest answers, and what made them slow. Knows the keys of output lines."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from caraserve_cli.core import ColdStart

NUM_SLOWEST = 25

# Parts of a latency and what to call the largest of them.
REASONS: Mapping[str, str] = {
    "queued_ms": "queued",
    "loading_ms": "loading its adapter",
    "preempted_ms": "preempted",
    "stalled_ms": "held up by other adapters' loads",
    "computing_ms": "its own computation",
}


class SlowestRequests:
    """The `NUM_SLOWEST` answers of the largest latency."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, dict[str, object]]] = []
        self._num_seen = 0

    def add_row(self, row: Mapping[str, object]) -> None:
        """Take in one output line."""
        latency_ms = _ms(row, "latency_ms")
        self._num_seen += 1
        if len(self._heap) == NUM_SLOWEST and latency_ms <= self._heap[0][0]:
            return
        entry = (latency_ms, -self._num_seen, _described(row))  # of equal ones the first stays
        if len(self._heap) < NUM_SLOWEST:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def as_json(self) -> list[dict[str, object]]:
        """The slowest first."""
        return [described for _, _, described in sorted(self._heap, key=lambda e: (-e[0], -e[1]))]


def latency_parts(row: Mapping[str, object]) -> dict[str, float]:
    """`latency_ms` of an output line in parts that add up to it.

    The wait for an adapter's copying lies before the first scheduling only where the request was passed over
    for it (on-demand); other ways wait for it in steps.
    """
    latency_ms = left_ms = _ms(row, "latency_ms")
    before_ms = _ms(row, "disk_wait_ms") + _ms(row, "room_wait_ms")
    if row["cold_start"] == ColdStart.ON_DEMAND:
        before_ms += _ms(row, "load_wait_ms")
    loading_ms = _ms(row, "disk_wait_ms") + _ms(row, "room_wait_ms") + _ms(row, "load_wait_ms")
    wanted = {
        "queued_ms": max(_ms(row, "queue_ms") - before_ms, 0.0),
        "loading_ms": loading_ms,
        "preempted_ms": _ms(row, "preempted_ms"),
        "stalled_ms": _ms(row, "stalled_ms"),
    }
    parts: dict[str, float] = {}
    for name, part_ms in wanted.items():
        parts[name] = min(part_ms, left_ms)
        left_ms -= parts[name]
    return {**parts, "computing_ms": min(left_ms, latency_ms)}


def _described(row: Mapping[str, object]) -> dict[str, object]:
    parts = latency_parts(row)
    largest = max(parts, key=lambda name: parts[name])
    keys = ("id", "adapter", "cold_start", "completion_tokens", "latency_ms", "ttft_ms", "tpot_ms")
    return {
        **{key: row[key] for key in keys},
        "replica": row.get("replica"),
        "slack_ms": row.get("slack_ms"),
        "slo_attained": row["slo_attained"],
        "reason": REASONS[largest],
        "parts_ms": {name: round(part_ms, 3) for name, part_ms in parts.items()},
    }


def _ms(row: Mapping[str, object], key: str) -> float:
    value = row.get(key)  # an earlier version did not write all of them
    return float(value) if isinstance(value, (int, float)) else 0.0
