"""In which order those that wait are taken, and how much of a prompt one step computes: the scheduler asks a
policy. Here are what it asks, and first come, first served; `by_slack` has the other.

No torch and no clock of its own: the simulator runs the very same classes.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import ClassVar, Protocol

from caraserve_cli.core import AdapterInfo, Sequence
from caraserve_cli.engine.plan_draft import PlanDraft


class SchedulingPolicy(Protocol):
    """What the scheduler asks. A sequence is told with `add`, and with `remove` when it is finished; in each
    plan `begin_plan` comes first.

    Whatever a policy answers, running sequences that decode are in every step, and the scheduler preempts the
    last one admitted first. So that nobody starves, a policy must bring each sequence that waits to the head
    of `order` in finite time, let it start there, and have it stay there until it is admitted; and it must
    never refuse a chunk to the first running sequence with a prompt for ever.

    Attributes:
        name: what `--scheduling` calls it.
    """

    name: ClassVar[str]

    def add(self, sequence: Sequence, adapter: AdapterInfo | None, now_ms: float) -> None:
        """A sequence is queued."""
        ...

    def remove(self, sequence: Sequence) -> None:
        """A sequence is finished, wherever it was."""
        ...

    def begin_plan(self, running: SequenceOf[Sequence], now_ms: float) -> None:
        """The next plan is made now. `running` is the scheduler's own list, which grows as it admits."""
        ...

    def order(self, waiting: SequenceOf[Sequence]) -> list[Sequence]:
        """Those that wait, given in the order in which they were queued, as they are to be served."""
        ...

    def most_prompt_tokens(self, sequence: Sequence, draft: PlanDraft) -> int:
        """Of a running sequence whose prompt is not computed yet: what the step may have of it; 0 for
        nothing."""
        ...

    def most_first_tokens(self, sequence: Sequence, draft: PlanDraft) -> int:
        """The same for one that waits, if it were admitted now; 0 if it is not to be."""
        ...

    def note_admitted(self, sequence: Sequence, now_ms: float) -> None:
        """A sequence that waited runs."""
        ...


class FirstComeFirstServed:
    """The order of arrival; prompts in chunks as large as the step has room for."""

    name: ClassVar[str] = "fcfs"

    def add(self, sequence: Sequence, adapter: AdapterInfo | None, now_ms: float) -> None:
        """See `SchedulingPolicy`."""

    def remove(self, sequence: Sequence) -> None:
        """See `SchedulingPolicy`."""

    def begin_plan(self, running: SequenceOf[Sequence], now_ms: float) -> None:
        """See `SchedulingPolicy`."""

    def order(self, waiting: SequenceOf[Sequence]) -> list[Sequence]:
        """See `SchedulingPolicy`."""
        return list(waiting)

    def most_prompt_tokens(self, sequence: Sequence, draft: PlanDraft) -> int:
        """See `SchedulingPolicy`."""
        return draft.budget_tokens

    def most_first_tokens(self, sequence: Sequence, draft: PlanDraft) -> int:
        """See `SchedulingPolicy`."""
        return draft.budget_tokens

    def note_admitted(self, sequence: Sequence, now_ms: float) -> None:
        """See `SchedulingPolicy`."""
