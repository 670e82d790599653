"""The decoding steps that a simulated replica is passing over in one event: when they begin, when somebody's
arrival cuts them short, and what is booked when they end.

Where steps are planned ahead, those planned before them are under way when they begin, and the last of them
are when they end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from caraserve_cli.core import AdapterInfo, Sequence
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.simulation.decode_run import DecodeRun
from caraserve_cli.simulation.simulated_request import SimulatedRequest
from caraserve_cli.simulation.step_times import DecodeTimes, StepTimes
from caraserve_cli.simulation.steps_ahead import StepsAhead


class RunUnderWay:
    """At most one run of such steps, of one replica.

    Args:
        scheduler: of the replica.
        step_times: of the replica.
        steps: that are planned one by one; the run follows them.
        requests: of the sequences that are there.
        adapters: name → what is there.
        most_steps: that are passed over at once; 0 for none.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        step_times: StepTimes,
        steps: StepsAhead,
        requests: Mapping[Sequence, SimulatedRequest],
        adapters: Mapping[str, AdapterInfo],
        most_steps: int,
    ) -> None:
        self._scheduler, self._step_times, self._steps = scheduler, step_times, steps
        self._requests, self._adapters = requests, adapters
        self._most_steps = most_steps
        self._ahead = steps.most_ahead
        self._run: DecodeRun | None = None
        self._times: DecodeTimes | None = None

    def __bool__(self) -> bool:
        """Whether there is one."""
        return self._run is not None

    @property
    def event_ms(self) -> float:
        """When the next step is planned that is not one of them; there is a run."""
        assert self._run is not None
        return self._run.end_ms(self._run.num_steps - self._ahead)

    def begin(self, now_ms: float, due_ms: float | None) -> bool:
        """Pass over steps that only decode, if the next ones do; False if they do not. Who plans ahead plans
        the last of them when the one before it ends.

        Args:
            now_ms: the time now.
            due_ms: when somebody is late, and dropped at the end of a step that is planned; None where
                nobody is ever dropped.
        """
        if len(self._steps) != self._ahead:
            return False
        most_steps = self._fewest_tokens_left()
        num_steps = (
            self._scheduler.equal_steps.num_next(most_steps, tight=not self._ahead) if most_steps else 0
        )
        if num_steps <= self._ahead:
            return False
        times = self._step_times.decode_ms(self._scheduler.running, self._adapters)
        between_ms = self._steps.between_ms
        begin_ms = self._steps.free_ms(now_ms) - between_ms
        run = DecodeRun(begin_ms, times.first_ms + between_ms, times.growth_ms, num_steps)
        if due_ms is not None:
            run = replace(run, num_steps=run.steps_until(min(due_ms, run.end_ms(num_steps))) - 1)
            if run.num_steps <= self._ahead:
                return False
        self._run, self._times = run, times
        return True

    def cut(self, now_ms: float) -> None:
        """Somebody has come: what is planned when the step of now has ended is planned for them too. There is
        a run."""
        run = self._run
        assert run is not None
        is_begun = not self._ahead or now_ms > run.begin_ms
        num_ended = run.steps_until(now_ms) if is_begun else 0
        num_steps = min(run.num_steps, num_ended + self._ahead)
        if num_steps < run.num_steps:
            self._run = replace(run, num_steps=num_steps)

    def take(self) -> DecodeRun:
        """The run, which ends now: there is none any more."""
        assert self._run is not None
        assert self._times is not None
        run = self._run
        self._step_times.teach_decoding(self._times, run.num_steps)
        self._run = self._times = None
        return run

    def book(self, run: DecodeRun) -> list[Sequence]:
        """Those of its steps that have ended. Whose tokens they gave: some answers may be complete."""
        num_ended = run.num_steps - self._ahead
        if not num_ended:
            return []
        self._scheduler.equal_steps.book(num_ended)
        return [*self._scheduler.running, *self._scheduler.ending]

    def plan_last(self, run: DecodeRun, now_ms: float) -> None:
        """Whose answers are complete have left: who plans ahead plans the last of its steps now."""
        if self._ahead:
            plan = self._scheduler.equal_steps.plan()
            self._scheduler.commit(plan)
            self._steps.add_ending(plan, run.end_ms(run.num_steps))
        else:
            self._steps.note_end(now_ms)

    def _fewest_tokens_left(self) -> int:
        """Of any answer that is begun, as far as they are passed over at once."""
        most = self._most_steps
        for sequence in self._scheduler.running if most else ():
            left = self._requests[sequence].output_tokens - sequence.num_tokens + sequence.num_prompt_tokens
            most = min(most, left)
        return max(0, most)
