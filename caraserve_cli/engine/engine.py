"""One replica's engine: `add_request()`, `step()`.

Knows no files, no reports and no other replicas: it is given a runner, a clock and an event sink, and gives
back completions and failures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import (
    AdapterInfo,
    Completion,
    EventSink,
    Failure,
    FinishReason,
    Request,
    ScheduledChunk,
    Sequence,
    StepPlan,
    StepRecord,
    Timings,
)
from caraserve_cli.engine.limits import check_fits, max_output_tokens
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.errors import AdapterError, RowErrorCode
from caraserve_cli.model.sampler import Sampled


class Runner(Protocol):
    """What the engine needs of a model runner."""

    def evict_adapter(self, adapter_slot: int) -> None: ...

    def load_adapter(self, adapter: str, adapter_slot: int) -> None: ...

    def execute(self, plan: StepPlan) -> list[tuple[ScheduledChunk, Sampled]]: ...


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
    ) -> None:
        self.config = config
        self.scheduler = Scheduler(config, clock_ms)
        self._runner = runner
        self._eos_token_ids = eos_token_ids
        self._rope_variant = rope_variant
        self._open_text = open_text
        self._clock_ms = clock_ms
        self._events = events
        self._texts: dict[Sequence, TextStream] = {}

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work

    @property
    def num_unfinished(self) -> int:
        return len(self.scheduler.waiting) + len(self.scheduler.running)

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
        )
        if self.config.prefix_caching:
            sequence.prefix_root = self._prefix_root(request, adapter)
        if self._open_text is not None:
            self._texts[sequence] = self._open_text(request)
        self.scheduler.add(sequence, adapter)

    def step(self) -> list[Completion | Failure]:
        """Run one step; what ended with it."""
        start_ms = self._clock_ms()
        plan = self.scheduler.plan()
        plan, failures = self._move_adapters(plan)
        loaded_ms = self._clock_ms()
        sampled = self._runner.execute(plan) if plan.chunks else []
        self.scheduler.commit(plan)
        now_ms = self._clock_ms()
        completions = [
            done for chunk, token in sampled if (done := self._take(chunk.sequence, token, now_ms))
        ]
        self._record(plan, start_ms, loaded_ms - start_ms)
        return [*failures, *completions]

    def _prefix_root(self, request: Request, adapter: AdapterInfo | None) -> bytes:
        """Equal only where equal tokens have equal keys and values: same adapter, same frequencies."""
        content = b"" if adapter is None else adapter.content_hash
        variant = self._rope_variant(len(request.prompt_token_ids))
        return blake2b(b"%d:%b" % (variant, content), digest_size=16).digest()

    def _move_adapters(self, plan: StepPlan) -> tuple[StepPlan, list[Completion | Failure]]:
        """Evict and load as planned; requests whose adapter cannot be loaded any more fail alone."""
        for adapter_slot in plan.evictions:
            self._runner.evict_adapter(adapter_slot)
        failures: list[Completion | Failure] = []
        for adapter, adapter_slot in plan.loads:
            try:
                self._runner.load_adapter(adapter, adapter_slot)
            except AdapterError as error:
                failures += self._fail_users(adapter, str(error))
        if failures:
            failed = {failure.request.id for failure in failures}
            chunks = tuple(c for c in plan.chunks if c.sequence.request.id not in failed)
            plan = dataclasses.replace(plan, chunks=chunks)
        return plan, failures

    def _fail_users(self, adapter: str, message: str) -> list[Failure]:
        users = self.scheduler.users_of(adapter)
        for sequence in users:
            self.scheduler.finish(sequence)
            self._texts.pop(sequence, None)
        self.scheduler.residency.discard(adapter)
        return [Failure(user.request, RowErrorCode.ADAPTER_REFUSED, message) for user in users]

    def _take(self, sequence: Sequence, sampled: Sampled, now_ms: float) -> Completion | None:
        """Append a chosen token; the completion if it ends the answer."""
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
        if sequence.num_output_tokens >= max_output_tokens(self.config, sequence.request):
            return FinishReason.LENGTH
        return None

    def _complete(self, sequence: Sequence, finish_reason: FinishReason) -> Completion:
        self.scheduler.finish(sequence)
        text = self._texts.pop(sequence, None)
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
        )

    def _record(self, plan: StepPlan, start_ms: float, adapter_load_ms: float) -> None:
        num_decode = sum(chunk.start >= chunk.sequence.num_prompt_tokens for chunk in plan.chunks)
        blocks = self.scheduler.blocks
        self._events.on_step(
            StepRecord(
                start_ms=start_ms,
                end_ms=self._clock_ms(),
                num_prefill_tokens=plan.num_tokens - num_decode,
                num_decode_tokens=num_decode,
                num_running=len(self.scheduler.running),
                num_waiting=len(self.scheduler.waiting),
                num_preempted=plan.num_preempted,
                num_cached_tokens=plan.num_cached_tokens,
                num_adapter_loads=len(plan.loads),
                adapter_load_ms=adapter_load_ms if plan.loads else 0.0,
                num_kv_blocks_used=blocks.num_used,
                num_kv_blocks=blocks.num_blocks,
            )
        )
