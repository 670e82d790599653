"""The run's clock: milliseconds since the run started, which is when the first request could be served.

In a session that goes on with a run it may start later than at 0: the time in between is not waited again.
"""

from __future__ import annotations

import time


class RunClock:
    """Stands at 0 until started."""

    def __init__(self) -> None:
        self._started_s: float | None = None
        self._from_ms = 0.0

    def start(self, from_ms: float = 0.0) -> None:
        """Begin to count, from so many milliseconds; later calls change nothing."""
        if self._started_s is None:
            self._started_s, self._from_ms = time.perf_counter(), from_ms

    @property
    def running_ms(self) -> float:
        """How long it has counted, in this session."""
        return 0.0 if self._started_s is None else (time.perf_counter() - self._started_s) * 1000.0

    def __call__(self) -> float:
        return self._from_ms + self.running_ms
