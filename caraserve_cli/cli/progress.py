"""The progress of a run on stderr: a live display on a terminal, plain lines anywhere else.

Shows a `ProgressState` and computes nothing of it; never writes to stdout. Cheap enough to be told after
every engine step: it draws at most five times a second and otherwise only keeps the state. A stderr that
takes nothing more, such as a log on a full disk, does not stop the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from caraserve_cli.report.progress_state import ProgressState
from caraserve_cli.report.run_facts import printable
from caraserve_cli.report.terminal import format_duration, format_share

_LIVE_INTERVAL_S = 0.2
_PLAIN_INTERVAL_S = 10.0


class RunProgress:
    """Context manager around a run; `update` is the callable that a job is given.

    Args:
        console: where to show; a console on stderr when not given.
        clock: seconds, monotonic.
    """

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = Console(stderr=True) if console is None else console
        self._clock = clock
        self._state: ProgressState | None = None
        self._live: Live | None = None
        self._next_draw_s = 0.0

    def __enter__(self) -> Self:
        # FORCE_COLOR makes rich call a pipe a terminal; cursor movements would still be noise in a log.
        if self._console.is_interactive and self._console.file.isatty():
            self._live = Live(
                console=self._console, auto_refresh=False, transient=True, redirect_stdout=False
            )
            self._live.start()
            self._next_draw_s = self._clock()
        else:
            self._next_draw_s = self._clock() + _PLAIN_INTERVAL_S
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            # The display goes away: what remains on the screen is the summary that follows.
            with suppress(OSError):
                self._live.stop()
            self._live = None
        elif self._state is not None:
            self._print_line(self._state)

    def stage(self, text: str) -> None:
        """On a terminal, show what is being waited for, until there is a state to show."""
        if self._live is not None:
            with suppress(OSError):
                self._live.update(Text(text), refresh=True)

    def note(self, text: str) -> None:
        """Show a line that stays; bytes of a file's name that are no UTF-8 are written out."""
        with suppress(OSError):
            self._console.print(Text(printable(text)), soft_wrap=True)

    def update(self, state: ProgressState) -> None:
        """Take the newest state; draws it only when a drawing is due."""
        self._state = state
        now_s = self._clock()
        if now_s < self._next_draw_s:
            return
        if self._live is not None:
            self._next_draw_s = now_s + _LIVE_INTERVAL_S
            with suppress(OSError):
                self._live.update(_display(state), refresh=True)
        else:
            self._next_draw_s = now_s + _PLAIN_INTERVAL_S
            self._print_line(state)

    def _print_line(self, state: ProgressState) -> None:
        with suppress(OSError):
            self._console.print(Text(", ".join(_parts(state))), soft_wrap=True)


def _display(state: ProgressState) -> Group:
    """The bar is of the rows that are finished; it pulses where the input's size is not known."""
    fraction = state.fraction_done
    bar = ProgressBar(total=None if fraction is None else 1.0, completed=fraction or 0.0, width=None)
    # The bar comes last: it ends without a line break, and what followed would be cut off beside it.
    return Group(Text(", ".join(_parts(state))), bar)


def _parts(state: ProgressState) -> list[str]:
    tokens_per_s = state.output_tokens_per_s
    parts = [
        f"{state.num_answered:,} answered",
        f"{state.num_errors:,} errors",
        f"{state.num_running:,} running",
        f"{state.num_waiting:,} waiting",
    ]
    if state.num_to_come:
        parts.append(f"{state.num_to_come:,} to come")
    if tokens_per_s is not None:
        parts.append(f"{tokens_per_s:,.0f} tokens/s")
    if state.slo_carried:
        parts.append(f"SLO attainment {format_share(state.slo_attainment)}")
    if earlier := _earlier(state):
        parts.append(earlier)
    parts.append(_time(state))
    return parts


def _earlier(state: ProgressState) -> str:
    """What earlier sessions have done, in no other count; empty if nothing."""
    counts = ((state.num_answered_earlier, "answered"), (state.num_errors_earlier, "errors"))
    done = " and ".join(f"{count:,} {what}" for count, what in counts if count)
    return f"{done} in earlier sessions" if done else ""


def _time(state: ProgressState) -> str:
    """Time passed, and time left as far as it can be told and something is left."""
    passed = f"{format_duration(state.elapsed_s)} passed"
    left_s = state.time_left_s
    return f"{passed}, about {format_duration(left_s)} left" if left_s else passed
