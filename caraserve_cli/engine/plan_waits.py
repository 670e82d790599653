"""Whom a plan passes over, and for what they wait from then until the next plan.

A wait is told by plans only: it begins and ends with one, and what came in between is noticed by the next.
"""

from __future__ import annotations

from enum import Enum, auto

from caraserve_cli.core import Sequence, Timings


class WaitFor(Enum):
    """What a sequence waits for that a plan would take otherwise."""

    ROOM = auto()  # in the device's pool: others use what is there
    DISK = auto()  # its adapter is being read into host memory
    COPIES = auto()  # its adapter is being copied to the device


class PlanWaits:
    """The sequences that the last plan passed over; not those that have their first token, nor those whose
    last chunk is still being computed."""

    def __init__(self) -> None:
        self._since_ms = 0.0
        self._passed_over: list[tuple[Timings, WaitFor]] = []

    def note(self, sequence: Sequence, wait_for: WaitFor) -> None:
        """The plan in the making passes a sequence over."""
        if sequence.timings.first_token_ms is None and not sequence.is_unchecked:
            self._passed_over.append((sequence.timings, wait_for))

    def end(self, now_ms: float) -> None:
        """The next plan begins."""
        waited_ms = now_ms - self._since_ms
        for timings, wait_for in self._passed_over:
            match wait_for:
                case WaitFor.ROOM:
                    timings.room_wait_ms += waited_ms
                case WaitFor.DISK:
                    timings.disk_wait_ms += waited_ms
                case WaitFor.COPIES:
                    timings.load_wait_ms += waited_ms
        self._passed_over.clear()
        self._since_ms = now_ms
