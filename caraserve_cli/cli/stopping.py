"""The only owner of Ctrl-C and SIGTERM. Imports nothing heavy: it listens before all else is imported."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from caraserve_cli.job.stop_request import StopRequest

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

NUMBERS = (signal.SIGINT, signal.SIGTERM)


def listen() -> StopRequest:
    """Take both signals for a wish to stop, the same for all that runs from now on."""
    stop = StopRequest()
    show_ignored = sys.unraisablehook

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.ask()

    def show_others(ignored: UnraisableHookArgs) -> None:
        """Python tells of a KeyboardInterrupt that a `__del__` has swallowed: it is raised again."""
        if not (stop.is_asked and issubclass(ignored.exc_type, KeyboardInterrupt)):
            show_ignored(ignored)

    sys.unraisablehook = show_others
    for number in NUMBERS:
        signal.signal(number, handle)
    return stop


def listen_no_more() -> None:
    """The process is about to end: another signal ends it as it would any other."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_DFL)
