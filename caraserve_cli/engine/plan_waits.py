"""Whom a plan passes over, and for what they wait from then until the next plan.

A wait begins and ends with a plan: what came in between is noticed by the next. Only a wait for a disk ends
when the adapter has been read.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto

from caraserve_cli.core import Sequence


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
        self._passed_over: list[tuple[Sequence, WaitFor]] = []

    def note(self, sequence: Sequence, wait_for: WaitFor) -> None:
        """The plan in the making passes a sequence over."""
        if sequence.timings.first_token_ms is None and not sequence.is_unchecked:
            self._passed_over.append((sequence, wait_for))

    def end(self, now_ms: float, ready_ms: Callable[[str], float]) -> None:
        """The next plan begins.

        Args:
            ready_ms: for how long an adapter has been in host memory; 0 where it is not.
        """
        waited_ms = now_ms - self._since_ms
        for sequence, wait_for in self._passed_over:
            timings, adapter = sequence.timings, sequence.request.adapter
            match wait_for:
                case WaitFor.ROOM:
                    timings.room_wait_ms += waited_ms
                case WaitFor.DISK:
                    since_ms = 0.0 if adapter is None else ready_ms(adapter)
                    timings.disk_wait_ms += max(0.0, waited_ms - since_ms)
                case WaitFor.COPIES:
                    timings.load_wait_ms += waited_ms
        self._passed_over.clear()
        self._since_ms = now_ms
