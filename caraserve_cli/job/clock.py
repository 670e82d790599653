"""The run's clock: milliseconds since the run started, which is when the first request could be served."""

from __future__ import annotations

import time


class RunClock:
    """Stands at 0 until started."""

    def __init__(self) -> None:
        self._started_s: float | None = None

    def start(self) -> None:
        """Begin to count; later calls change nothing."""
        if self._started_s is None:
            self._started_s = time.perf_counter()

    def __call__(self) -> float:
        return 0.0 if self._started_s is None else (time.perf_counter() - self._started_s) * 1000.0
