"""Steps that were launched and whose tokens have not been taken: what they computed, what it took, and who
waited for whose adapter in them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from caraserve_cli.adapters.transfer import Stall
from caraserve_cli.core import Completion, Failure, Sequence, SequenceStatus
from caraserve_cli.engine.depot import AdapterDepot
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.engine.step_record import Attempt, ColdCosts, LoadCount, count_tokens, make_record
from caraserve_cli.events import EventSink
from caraserve_cli.model.sampler import Sampled
from caraserve_cli.perf.step_predictor import StepPrediction, StepPredictor, Unpredicted
from caraserve_cli.step_plan import AssistOutcome, ScheduledChunk, StepPlan


class StepResult(Protocol):
    """The tokens of a step that is under way."""

    def sampled(self) -> list[tuple[ScheduledChunk, Sampled]]:
        """Wait for the step; the next token of each chunk that yields one."""
        ...

    @property
    def adapter_copy_ms(self) -> float:
        """What copying the adapters took that have arrived since the step before; known after `sampled`."""
        ...

    @property
    def assist_outcome(self) -> AssistOutcome:
        """Whether all that CPU workers were to compute came in time; known after `sampled`. What fails in a
        later step may change it."""
        ...


class BesideResult(StepResult, Protocol):
    """The tokens of a step that is under way beside the others."""

    @property
    def has_ended(self) -> bool:
        """Whether `sampled` will not have to wait."""
        ...


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step under way; the last of `attempts` is its own, those before it did not fit the device.

    `prediction`: what was said of its time then. `stall`: for what it stands still;
    `cold_adapters`: those that were on their way when it was launched.
    """

    attempts: tuple[Attempt, ...]
    result: StepResult
    stall: Stall
    cold_adapters: frozenset[str]
    prediction: StepPrediction

    @property
    def plan(self) -> StepPlan:
        return self.attempts[-1].plan


class StepsUnderWay:
    """Those of one engine, the oldest first.

    Args:
        scheduler: told of adapters that have arrived, and of assistance that came too late.
        depot: of the runner that computes the steps.
        take_token: takes a token of a sequence at a time; the completion if that ends the answer,
            a failure if it came too late.
        clock_ms: milliseconds since the start of the run.
        events: told of every step.
        predictor: asked about every step before it is computed, and told what it took.

    Attributes:
        loads: those that no record tells of yet.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        depot: AdapterDepot,
        take_token: Callable[[Sequence, Sampled, float], Completion | Failure | None],
        clock_ms: Callable[[], float],
        events: EventSink,
        predictor: StepPredictor,
    ) -> None:
        self._scheduler, self._depot, self._take_token = scheduler, depot, take_token
        self._clock_ms, self._events = clock_ms, events
        self._predictor = predictor
        self.loads = LoadCount()
        self._num_lost_workers = 0
        self._steps: deque[_Launched] = deque()
        self._beside: tuple[_Launched, BesideResult] | None = None
        self._last_end_ms = 0.0

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, attempts: tuple[Attempt, ...], result: StepResult) -> None:
        """A step was launched right now; the last of `attempts` is its own."""
        self._steps.append(self._launched(attempts, result))

    def add_beside(self, plan: StepPlan, start_ms: float, result: BesideResult) -> None:
        """A step was launched right now that is computed beside the others."""
        beside = self._launched((Attempt(plan, start_ms),), result, Unpredicted.BESIDE)
        self._beside = beside, result
        # Those under way share the device with it from here on.
        self._steps = deque(
            replace(step, prediction=step.prediction.without(Unpredicted.SHARING)) for step in self._steps
        )

    def take_beside(self) -> list[Completion | Failure]:
        """What ended with the step beside the others, if that has ended; never waits."""
        if self._beside is None or not self._beside[1].has_ended:
            return []
        (step, _), self._beside = self._beside, None
        self._scheduler.cold_starts.lane.leave()
        sampled, now_ms = step.result.sampled(), self._clock_ms()
        return self._take_tokens(step, sampled, step.attempts[0].start_ms, now_ms, is_beside=True)

    def take(self, most_left: int) -> list[Completion | Failure]:
        """Wait for the oldest ones, until no more than `most_left` are under way; what ended with them."""
        outcomes: list[Completion | Failure] = []
        while len(self._steps) > most_left:
            outcomes += self._take_step(self._steps.popleft())
        return outcomes

    def _take_step(self, step: _Launched) -> list[Completion | Failure]:
        """Wait for a step's tokens; what ended with them."""
        sampled = step.result.sampled()
        now_ms = self._clock_ms()
        # Steps in flight overlap; each accounts for the time since the one before it ended.
        start_ms = max(step.attempts[0].start_ms, self._last_end_ms)
        self._last_end_ms = now_ms
        return self._take_tokens(step, sampled, start_ms, now_ms)

    def _launched(
        self, attempts: tuple[Attempt, ...], result: StepResult, why_not: Unpredicted | None = None
    ) -> _Launched:
        """With what is said of its time; nothing, if it is known `why_not`."""
        if why_not is None and len(attempts) > 1:
            why_not = Unpredicted.RETRIED
        if why_not is None and self._beside is not None:
            why_not = Unpredicted.SHARING
        load = self._scheduler.load(attempts[-1].plan.chunks)
        prediction = self._predictor.predict(load, is_alone=not self._steps)
        if why_not is not None:
            prediction = prediction.without(why_not)
        cold_adapters = self._scheduler.cold_starts.under_way
        return _Launched(attempts, result, self._depot.take_stall(), cold_adapters, prediction)

    def _take_tokens(
        self,
        step: _Launched,
        sampled: list[tuple[ScheduledChunk, Sampled]],
        start_ms: float,
        end_ms: float,
        *,
        is_beside: bool = False,
    ) -> list[Completion | Failure]:
        """Take what a step has computed from `start_ms` to `end_ms`, and tell of it; what ended with it."""
        tokens = count_tokens(step.plan)
        self._scheduler.cold_starts.note_arrivals()
        # Asked once: workers may be late with the next step before this one is taken.
        outcome = step.result.assist_outcome
        cold_costs = self._cold_costs(step, outcome, end_ms - start_ms)
        holding = [(chunk.sequence, token) for chunk, token in sampled if _holds(chunk, outcome)]
        # Asked before they are taken: who has ended by then has ended with an earlier step.
        num_answer_tokens = sum(each.status is not SequenceStatus.FINISHED for each, _ in holding)
        outcomes = [done for each, token in holding if (done := self._take_token(each, token, end_ms))]
        loads = self.loads.take(step.result.adapter_copy_ms, self._depot.copied_bytes)
        record = make_record(
            step.attempts,
            loads,
            tokens,
            cold_costs,
            self._scheduler,
            step.prediction,
            self._predictor.source,
            start_ms,
            end_ms,
        )
        self._events.on_step(replace(record, num_answer_tokens=num_answer_tokens, is_beside=is_beside))
        self._predictor.learn(step.prediction, end_ms - start_ms - cold_costs.stall_ms)
        return outcomes

    def _cold_costs(self, step: _Launched, outcome: AssistOutcome, step_ms: float) -> ColdCosts:
        """What adapters on their way cost in a step that has ended, of `step_ms`; its sequences are told.
        Chunks whose part on the CPU came too late are computed again, and their tokens do not hold."""
        num_assists = num_spared_loads = 0
        for chunk in step.plan.chunks:
            self._scheduler.check(chunk, in_time=_holds(chunk, outcome))
            if chunk.cpu_layers and outcome is not AssistOutcome.NONE:
                chunk.sequence.timings.assisted_ms += step_ms
                num_assists += 1
            num_spared_loads += chunk.lent_slot is not None and chunk.yields_token and _holds(chunk, outcome)
        stall_ms = step.stall.ms
        lost_before, self._num_lost_workers = self._num_lost_workers, self._depot.num_lost_workers
        return ColdCosts(
            num_assists=num_assists,
            num_failed_assists=num_assists if outcome is AssistOutcome.LATE else 0,
            num_spared_loads=num_spared_loads,
            num_lost_workers=self._num_lost_workers - lost_before,
            stall_ms=stall_ms,
            others_stalled_ms=stall_ms * _tell_stall(step, stall_ms) if stall_ms else 0.0,
        )


def _holds(chunk: ScheduledChunk, outcome: AssistOutcome) -> bool:
    """Whether what was computed of a chunk holds."""
    return not chunk.cpu_layers or outcome is not AssistOutcome.LATE


def _tell_stall(step: _Launched, stall_ms: float) -> int:
    """Tell all sequences of a step that it stood still for `stall_ms`; how many of them waited for others.
    Who decodes does: its own adapter was complete when it began to, though perhaps nobody had noted that."""
    num_others = 0
    for chunk in step.plan.chunks:
        sequence, timings = chunk.sequence, chunk.sequence.timings
        if sequence.status is SequenceStatus.FINISHED:
            continue
        is_decoding = chunk.start >= sequence.num_prompt_tokens
        if is_decoding or sequence.request.adapter not in step.cold_adapters:
            timings.stalled_ms += stall_ms
            num_others += 1
        elif timings.first_token_ms is None:
            timings.load_wait_ms += stall_ms
    return num_others
