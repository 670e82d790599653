"""A clock that a test moves: what depends on time depends on no other process then."""

from __future__ import annotations

# What a look at it takes.
_LOOK_NS = 1000


class MovedClock:
    """In place of the module `time`: it passes when somebody sleeps, and a little with every look."""

    def __init__(self) -> None:
        self._now_ns = 10**12

    def perf_counter_ns(self) -> int:
        self._now_ns += _LOOK_NS
        return self._now_ns

    def perf_counter(self) -> float:
        return self.perf_counter_ns() / 1e9

    def sleep(self, duration_s: float) -> None:
        self._now_ns += round(duration_s * 1e9)

    def now_ms(self) -> float:
        """As the clock of a run."""
        return self.perf_counter_ns() / 1e6
