"""Whether the user wants the work to stop, and what happens then to what is under way.

Knows no signals: whoever owns their handlers calls `ask`. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from caraserve_cli.errors import ExitStatus


class StopRequest:
    """At first the work is broken off, by KeyboardInterrupt. That may be swallowed, as in a `__del__` that
    runs while a library is imported: the wish is noted, and `check` raises again. After `finish_steps` a
    first wish lets the step under way finish, and a second one ends the process.

    Attributes:
        goal: what was not reached if the work was broken off.
    """

    def __init__(self) -> None:
        self.goal = "anything was answered"
        self._is_asked = False
        self._finishes_steps = False

    @property
    def is_asked(self) -> bool:
        return self._is_asked

    @property
    def breaks_off(self) -> bool:
        """Whether somebody wants to stop what no step of a run is part of."""
        return self._is_asked and not self._finishes_steps

    def ask(self) -> None:
        """Note the wish, and break off what may be broken off.

        Raises:
            KeyboardInterrupt: no step is to be finished.
            SystemExit: it was asked for before.
        """
        asked_before, self._is_asked = self._is_asked, True
        if not self._finishes_steps:
            raise KeyboardInterrupt
        if asked_before:
            raise SystemExit(ExitStatus.INTERRUPTED)

    def check(self) -> None:
        """To be called where work begins that is long or leaves something behind.

        Raises:
            KeyboardInterrupt: somebody wants to stop, whatever became of the first time this was raised.
        """
        if self._is_asked:
            raise KeyboardInterrupt

    def finish_steps(self) -> None:
        """From now on a step under way is finished.

        Raises:
            KeyboardInterrupt: as `check` does.
        """
        self._finishes_steps = True
        try:
            self.check()
        except KeyboardInterrupt:
            self._finishes_steps = False
            raise

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Inside, nothing is finished: for a start-up between steps.

        Raises:
            KeyboardInterrupt: as `check` does, before and after.
        """
        self._finishes_steps = False
        self.check()
        yield
        self.check()
        self.finish_steps()
