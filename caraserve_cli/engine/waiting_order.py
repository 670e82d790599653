"""Those that wait, in the order of the policy: they are ordered once a plan, and not at all while nobody can
be admitted and nobody comes.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from itertools import islice

from caraserve_cli.core import Sequence, SequenceStatus
from caraserve_cli.engine.scheduling import SchedulingPolicy


class WaitingOrder:
    """Asks a policy, and keeps its answer for as long as it holds.

    Args:
        policy: it orders.
        waiting: the scheduler's own list, by arrival.
        running: the scheduler's own list.
        clock_ms: milliseconds since the start of the run.
    """

    def __init__(
        self,
        policy: SchedulingPolicy,
        waiting: SequenceOf[Sequence],
        running: SequenceOf[Sequence],
        clock_ms: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._waiting, self._running, self._clock_ms = waiting, running, clock_ms
        self._order: list[Sequence] = []
        self._is_complete = True  # whether all that wait are in it
        self._is_of_now = False  # whether it was made for the plan that comes next

    def note_newcomer(self) -> None:
        """One more waits, or again."""
        self._is_complete = self._is_of_now = False

    def begin_plan(self) -> None:
        """The next plan is made now."""
        self._policy.begin_plan(self._running, self._clock_ms())

    def in_plan(self) -> list[Sequence]:
        """All that wait, as the plan in the making is to take them."""
        if not self._is_of_now:
            self._make()
        return self._order

    def end_plan(self) -> None:
        """The plan is made: the next one asks again, for time goes on."""
        self._is_of_now = False

    def first(self, most: int) -> list[Sequence]:
        """The first of those that wait, between two plans; if nobody has come since the last one, in its
        order."""
        if not self._is_complete:
            self.begin_plan()
            self._make()
        return list(islice((s for s in self._order if s.status is SequenceStatus.WAITING), most))

    def _make(self) -> None:
        self._order = self._policy.order(self._waiting)
        self._is_complete = self._is_of_now = True
