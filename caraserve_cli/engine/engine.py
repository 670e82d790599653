"""One replica's engine: `add_request()`, `step()`.

Knows no files, no reports and no other replicas: it is given a runner, a clock and an event sink, and gives
back completions and failures.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import (
    AdapterInfo,
    Completion,
    Failure,
    FinishReason,
    Request,
    Sequence,
    SequenceStatus,
    Timings,
)
from caraserve_cli.engine.adapter_moves import AdapterMoves
from caraserve_cli.engine.limits import check_fits, max_output_tokens
from caraserve_cli.engine.missed_deadlines import MissedDeadlines, describe_miss, is_late
from caraserve_cli.engine.runner import BesideRunner, Runner
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.engine.scheduling import SchedulingPolicy
from caraserve_cli.engine.step_record import Attempt
from caraserve_cli.engine.steps_under_way import StepResult, StepsUnderWay
from caraserve_cli.errors import DeviceMemoryError
from caraserve_cli.events import EventSink
from caraserve_cli.model.sampler import Sampled, needs_lockstep
from caraserve_cli.perf.step_predictor import StepPredictor
from caraserve_cli.step_plan import ScheduledChunk, StepPlan


class TextStream(Protocol):
    """The text of one answer as its tokens arrive."""

    @property
    def text(self) -> str: ...

    def push(self, token_id: int) -> bool:
        """Take the next token; True when a stop string has appeared."""
        ...


class Engine:
    """Answers requests in continuous batches.

    Args:
        config: sizes and limits.
        runner: executes plans.
        eos_token_ids: tokens that end an answer unless the request ignores them.
        rope_variant: prompt length → which rotary frequencies it gets; part of a prefix's identity.
        open_text: makes the text stream of a request; None when the run has no tokenizer.
        clock_ms: milliseconds since the start of the run.
        events: told of every step.
        num_layers: of the base.
        predictor: of its steps' times; None for one that learns them from the steps alone.
        policy: in which order those that wait are taken; by default first come, first served.
    """

    def __init__(
        self,
        config: EngineConfig,
        runner: Runner,
        eos_token_ids: frozenset[int],
        rope_variant: Callable[[int], int],
        open_text: Callable[[Request], TextStream] | None,
        clock_ms: Callable[[], float],
        events: EventSink,
        num_layers: int = 1,
        predictor: StepPredictor | None = None,
        policy: SchedulingPolicy | None = None,
    ) -> None:
        self.config = config
        self.scheduler = Scheduler(config, clock_ms, num_layers, policy)
        self.scheduler.cold_starts.supply = runner.adapters
        if runner.beside is not None:
            self.scheduler.cold_starts.lane.max_tokens = runner.beside.max_tokens
        self._runner = runner
        self._eos_token_ids = eos_token_ids
        self._rope_variant = rope_variant
        self._open_text = open_text
        self._clock_ms = clock_ms
        self._missed_deadlines = MissedDeadlines() if config.drop_missed else None
        self._texts: dict[Sequence, TextStream] = {}
        self._attempts: list[Attempt] = []  # at the next step, none of which fitted so far
        self._moves = AdapterMoves(runner.adapters, self.scheduler, self._end)
        self._steps = StepsUnderWay(
            self.scheduler, runner.adapters, self._take, clock_ms, events, predictor or StepPredictor()
        )

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def num_unfinished(self) -> int:
        return self.scheduler.num_unfinished

    def add_request(self, request: Request, adapter: AdapterInfo | None) -> None:
        """Queue a request; `adapter` describes the one it names, None for the base alone.

        Raises:
            RowError: it could never be answered; see `limits.check_fits`.
        """
        check_fits(self.config, request, adapter)
        sequence = Sequence(
            request=request,
            timings=Timings(arrival_ms=request.arrival_ms),
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=len(request.prompt_token_ids),
            max_output_tokens=max_output_tokens(self.config, request),
        )
        if self.config.prefix_caching:
            sequence.prefix_root = self._prefix_root(request, adapter)
        if self._open_text is not None:
            self._texts[sequence] = self._open_text(request)
        self.scheduler.add(sequence, adapter)
        if self._missed_deadlines is not None:
            self._missed_deadlines.add(sequence)

    def step(self) -> list[Completion | Failure]:
        """Launch the next step, if there is one, and take the tokens of those that must be known by then.

        With a runner that allows two steps in flight, this step is planned and launched while the last one is
        computed. An answer that turns out to have ended there is then given one token too many, and it is
        dropped.
        """
        outcomes: list[Completion | Failure] = [*self._steps.take_beside()]
        if self.scheduler.is_tight:
            # The steps under way may end sequences and free what would be taken from others.
            outcomes += self._steps.take(most_left=0)
        start_ms = self._clock_ms()
        if self._missed_deadlines is not None:
            outcomes += [self._drop(each, start_ms) for each in self._missed_deadlines.take(start_ms)]
        self._runner.adapters.prefetch(self.scheduler.wanted_adapters())
        plan = self.scheduler.plan()
        planned_ms = self._clock_ms()
        plan, failures = self._moves.make(plan)
        most_in_flight = 0
        self._steps.loads.note(plan, self._clock_ms() - planned_ms)
        if plan.beside and self._runner.beside is not None:
            self._launch_beside(self._runner.beside, plan.beside, start_ms)
        if plan.chunks:
            self._attempts.append(Attempt(plan, start_ms))
            if result := self._launch(plan):
                self._steps.add(tuple(self._attempts), result)
                self._attempts.clear()
                self.scheduler.commit(plan)
                in_lockstep = any(needs_lockstep(c.sequence.request.sampling) for c in plan.chunks)
                most_in_flight = 0 if in_lockstep else self._runner.max_in_flight - 1
        elif plan.pool_ops and not plan.beside:
            self._runner.adapters.begin_copies()
        elif not self._steps and not failures and self.scheduler.has_work:
            self._runner.adapters.wait()
        if most_in_flight:
            # Where nothing may stay under way the tokens are there, or waited for: their time is taken first.
            self.scheduler.look_ahead()
        outcomes += failures
        outcomes += self._steps.take(most_in_flight)
        outcomes += self._steps.take_beside()
        if not self.scheduler.has_work:
            outcomes += self._steps.take(most_left=0)  # tokens too many, of answers that have ended
        return outcomes

    def _launch(self, plan: StepPlan) -> StepResult | None:
        """Start a plan; None if it does not fit the device, in which case the next ones are smaller for a
        while.

        Raises:
            DeviceMemoryError: they cannot be smaller.
        """
        try:
            return self._runner.launch(plan)
        except DeviceMemoryError:
            if not self.scheduler.halve_batch():
                raise
            return None

    def _launch_beside(
        self, runner: BesideRunner, chunks: tuple[ScheduledChunk, ...], start_ms: float
    ) -> None:
        """Start a step beside the others; where it does not fit the device, it is planned again.

        Raises:
            DeviceMemoryError: it cannot be smaller.
        """
        try:
            result = runner.launch(chunks)
        except DeviceMemoryError:
            if not self.scheduler.halve_batch():
                raise
            return
        self._steps.add_beside(StepPlan(chunks), start_ms, result)
        self.scheduler.commit_beside(chunks)

    def _prefix_root(self, request: Request, adapter: AdapterInfo | None) -> bytes:
        """Equal only where equal tokens have equal keys and values: same adapter, same frequencies."""
        content = b"" if adapter is None else adapter.identity
        variant = self._rope_variant(len(request.prompt_token_ids))
        return blake2b(b"%d:%b" % (variant, content), digest_size=16).digest()

    def _drop(self, sequence: Sequence, now_ms: float) -> Failure:
        """Give up a sequence whose deadline has passed. Tokens of it that are under way come to nothing."""
        failure = describe_miss(sequence, now_ms)
        self._end(sequence)
        return failure

    def _end(self, sequence: Sequence) -> TextStream | None:
        """Nothing more of a sequence is computed; the stream of its text."""
        self.scheduler.finish(sequence)
        return self._texts.pop(sequence, None)

    def _take(self, sequence: Sequence, sampled: Sampled, now_ms: float) -> Completion | Failure | None:
        """Append a chosen token; the completion if it ends the answer."""
        if sequence.status is SequenceStatus.FINISHED:
            return None  # a step launched before its end was known
        if self._missed_deadlines is not None and is_late(sequence, now_ms):
            return self._drop(sequence, now_ms)
        sequence.num_pending_tokens -= 1
        sequence.token_ids.append(sampled.token_id)
        if sampled.logprobs is not None:
            sequence.logprobs.append(sampled.logprobs)
        if sequence.timings.first_token_ms is None:
            sequence.timings.first_token_ms = now_ms
        sequence.timings.last_token_ms = now_ms
        finish_reason = self._finish_reason(sequence, sampled.token_id)
        return None if finish_reason is None else self._complete(sequence, finish_reason)

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        sampling = sequence.request.sampling
        if token_id in sampling.stop_token_ids:
            return FinishReason.STOP
        if token_id in self._eos_token_ids and not sampling.ignore_eos:
            return FinishReason.STOP
        text = self._texts.get(sequence)
        if text is not None and text.push(token_id):
            return FinishReason.STOP
        if sequence.num_output_tokens >= sequence.max_output_tokens:
            return FinishReason.LENGTH
        return None

    def _complete(self, sequence: Sequence, finish_reason: FinishReason) -> Completion:
        text = self._end(sequence)
        return Completion(
            request=sequence.request,
            text=None if text is None else text.text,
            token_ids=tuple(sequence.output_token_ids),
            finish_reason=finish_reason,
            cold_start=sequence.cold_start,
            timings=sequence.timings,
            logprobs=tuple(sequence.logprobs),
            num_cached_tokens=sequence.num_cached_tokens,
            num_preemptions=sequence.num_preemptions,
            num_failed_assists=sequence.num_failed_assists,
        )
