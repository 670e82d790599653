"""The steps of a simulated replica that are under way: planned, and not ended.

They are computed one after the other. A GPU's runner has two of them: while one is computed the next is
planned, so that a request that arrives meanwhile is at the earliest in the one after that. Beside them there
may be one step more, of prompts whose adapters are on their way; both then share the device.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from caraserve_cli.step_plan import ScheduledChunk, StepPlan


class PlannedStep(NamedTuple):
    """One step, and when it ends."""

    plan: StepPlan
    end_ms: float


class BesideStep(NamedTuple):
    """A step that is computed beside the others.

    Attributes:
        begin_ms: when the steps before it have ended.
        end_ms: when it will end.
        device_share: of the device's time that it takes until then; the others have the rest.
    """

    chunks: tuple[ScheduledChunk, ...]
    begin_ms: float
    end_ms: float
    device_share: float

    def other_end_ms(self, begin_ms: float, step_ms: float) -> float:
        """When a step ends that begins at `begin_ms` and alone would take `step_ms`."""
        begin_shared_ms = max(begin_ms, self.begin_ms)
        before_ms = begin_shared_ms - begin_ms
        if step_ms <= before_ms or begin_shared_ms >= self.end_ms:
            return begin_ms + step_ms
        left_ms, shared_ms = step_ms - before_ms, self.end_ms - begin_shared_ms
        done_ms = (1 - self.device_share) * shared_ms
        if left_ms <= done_ms:
            return begin_shared_ms + left_ms / (1 - self.device_share)
        return self.end_ms + left_ms - done_ms


class StepsAhead:
    """Those of one replica, the oldest first.

    Args:
        most: that are under way at once.
        between_ms: what the host does between the end of a step and the planning of the next, where none is
            planned ahead.

    Attributes:
        most_ahead: that are under way when another one is planned.
        beside: the step that is computed beside them; None where there is none.
        most_left: as many may be left when the next one is planned: 0 while the host waits for all of them.
    """

    def __init__(self, most: int, between_ms: float) -> None:
        self.most_ahead = most - 1
        self.between_ms = between_ms if most == 1 else 0.0
        self._steps: deque[PlannedStep] = deque()
        self._last_end_ms = -self.between_ms
        self.beside: BesideStep | None = None
        self.most_left = self.most_ahead

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def end_ms(self) -> float:
        """When the oldest ends; there is one."""
        return self._steps[0].end_ms

    @property
    def may_plan(self) -> bool:
        """Whether the host waits for none of them."""
        return len(self._steps) <= self.most_left

    def free_ms(self, now_ms: float) -> float:
        """When a step begins that is planned now."""
        return max(now_ms, self._last_end_ms + self.between_ms)

    def note_end(self, end_ms: float) -> None:
        """A step that was not planned here has ended."""
        self._last_end_ms = end_ms

    def add(self, plan: StepPlan, begin_ms: float, step_ms: float) -> None:
        """One is planned that begins at `begin_ms`, and alone on the device would take `step_ms`."""
        end_ms = begin_ms + step_ms
        if self.beside is not None:
            end_ms = self.beside.other_end_ms(begin_ms, step_ms)
        self.add_ending(plan, end_ms)

    def add_ending(self, plan: StepPlan, end_ms: float) -> None:
        """One is under way that ends then."""
        self._steps.append(PlannedStep(plan, end_ms))
        self._last_end_ms = end_ms
        self.most_left = self.most_ahead

    def wait_for_all(self) -> None:
        """Nothing is planned before all of them have ended."""
        self.most_left = 0

    def take(self) -> StepPlan:
        """The oldest has ended."""
        return self._steps.popleft().plan

    def take_beside(self, now_ms: float) -> tuple[ScheduledChunk, ...]:
        """The chunks of the step beside them if it has ended by now; otherwise none."""
        if self.beside is None or self.beside.end_ms > now_ms:
            return ()
        chunks, self.beside = self.beside.chunks, None
        return chunks
