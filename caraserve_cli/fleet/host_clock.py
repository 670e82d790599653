"""The run's clock on other machines than the driver's.

Processes that one kernel runs read the same monotonic clock. Between machines the distance of two such clocks
is told from round trips: of several, the one that took the shortest time, in the middle of which the other
clock is assumed to have been read. The error is at most half of that time, and what the clocks drift apart
afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

NUM_ROUND_TRIPS = 8


def monotonic_ms() -> float:
    """Milliseconds on the clock that `RunClock` counts with, from an arbitrary moment on."""
    return time.perf_counter() * 1000.0


class ClockOffset(NamedTuple):
    """How far another clock is ahead of this process's, and how wrong that may be."""

    ahead_ms: float
    error_ms: float


SAME_CLOCK = ClockOffset(0.0, 0.0)


def measure_offset(
    read_there_ms: Callable[[], float], read_here_ms: Callable[[], float] = monotonic_ms
) -> ClockOffset:
    """The offset of the clock that `read_there_ms` reads, wherever that is."""
    best = ClockOffset(0.0, float("inf"))
    for _ in range(NUM_ROUND_TRIPS):
        sent_ms = read_here_ms()
        there_ms = read_there_ms()
        back_ms = read_here_ms()
        error_ms = (back_ms - sent_ms) / 2
        if error_ms < best.error_ms:
            best = ClockOffset(there_ms - (sent_ms + back_ms) / 2, error_ms)
    return best


class HostedClock:
    """The run's clock in the process of a replica; it stands at 0 until it is set."""

    def __init__(self) -> None:
        self._origin_ms: float | None = None

    def set(self, origin_ms: float) -> None:
        """The run's clock was, or would have been, at 0 when this process's was at `origin_ms`."""
        self._origin_ms = origin_ms

    def __call__(self) -> float:
        return 0.0 if self._origin_ms is None else monotonic_ms() - self._origin_ms
