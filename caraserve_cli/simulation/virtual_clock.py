"""The time of a simulation: it passes when it is told to."""

from __future__ import annotations


class VirtualClock:
    """One for all parts of a simulated fleet; calling it gives the time, as calling a real clock does.

    Attributes:
        now_ms: milliseconds since the start of the run.
    """

    __slots__ = ("now_ms",)

    def __init__(self) -> None:
        self.now_ms = 0.0

    def __call__(self) -> float:
        return self.now_ms
