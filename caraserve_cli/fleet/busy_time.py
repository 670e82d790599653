"""How long a replica was busy, of steps whose times overlap. Knows no replicas."""

from __future__ import annotations

import math
from collections import deque

# Gaps between steps that a step told of later may fill. A step beside others is told of when it has ended,
# and lasts as long as some of those. Chosen, not measured.
_KEPT_GAPS = 1024


class BusyTime:
    """The time in which at least one step was under way: steps at the same time count once, so that it is
    never longer than what lies between the first one's start and the last one's end.

    Attributes:
        total_ms: of it.
    """

    def __init__(self) -> None:
        self.total_ms = 0.0
        self._until_ms = -math.inf
        # Times without any step, in their order.
        self._gaps: deque[tuple[float, float]] = deque(maxlen=_KEPT_GAPS)

    def add(self, start_ms: float, end_ms: float) -> None:
        """A step was under way from `start_ms` to `end_ms`. Steps come roughly in the order of their ends."""
        if start_ms < self._until_ms:
            self._fill_gaps(start_ms, end_ms)
        elif start_ms > self._until_ms:
            self._gaps.append((self._until_ms, start_ms))
        self.total_ms += max(0.0, end_ms - max(start_ms, self._until_ms))
        self._until_ms = max(self._until_ms, end_ms)

    def _fill_gaps(self, start_ms: float, end_ms: float) -> None:
        later: list[tuple[float, float]] = []
        while self._gaps and self._gaps[-1][1] > start_ms:
            gap_start_ms, gap_end_ms = self._gaps.pop()
            if gap_end_ms > end_ms:
                later.append((max(gap_start_ms, end_ms), gap_end_ms))
            if gap_start_ms < start_ms:
                self._gaps.append((gap_start_ms, start_ms))
            self.total_ms += max(0.0, min(gap_end_ms, end_ms) - max(gap_start_ms, start_ms))
            if gap_start_ms < start_ms:
                break
        self._gaps.extend(reversed(later))
