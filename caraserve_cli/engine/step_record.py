"""From steps under way to what is told of them: which tokens counted, how often a step had to be tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from caraserve_cli.core import SequenceStatus, StepPlan
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.events import StepRecord


class Attempt(NamedTuple):
    """A plan that was tried: its adapters are moved and its sequences admitted, whether it fitted or not."""

    plan: StepPlan
    start_ms: float


class Loads(NamedTuple):
    """Adapters loaded, and what it took, host and link together."""

    num_loads: int
    ms: float


@dataclass(slots=True)
class LoadCount:
    """The loads that no step record tells of yet: plans may load adapters and compute nothing."""

    num_loads: int = 0
    host_ms: float = 0.0

    def note(self, plan: StepPlan, plan_ms: float) -> None:
        """A plan was made, and its adapters moved, in `plan_ms`."""
        if plan.num_adapter_loads:
            self.num_loads += plan.num_adapter_loads
            self.host_ms += plan_ms

    def take(self, copy_ms: float) -> Loads:
        """All so far; `copy_ms` is the link's part of it."""
        loads = Loads(self.num_loads, self.host_ms + copy_ms)
        self.num_loads, self.host_ms = 0, 0.0
        return loads


class StepTokens(NamedTuple):
    """What a step computed, in tokens. Each is in one count: of a prompt (or computed again after a
    preemption), of an answer, or of an answer that had already ended."""

    num_prefill: int
    num_decode: int
    num_dropped: int


def count_tokens(plan: StepPlan) -> StepTokens:
    """Ask before the step's tokens are taken: who has ended by then has ended with an earlier step."""
    num_decode = num_dropped = 0
    for chunk in plan.chunks:
        if chunk.sequence.status is SequenceStatus.FINISHED:
            num_dropped += chunk.num_tokens
        elif chunk.yields_token and chunk.start >= chunk.sequence.num_prompt_tokens:
            num_decode += 1
    return StepTokens(plan.num_tokens - num_decode - num_dropped, num_decode, num_dropped)


def make_record(
    attempts: tuple[Attempt, ...],
    loads: Loads,
    tokens: StepTokens,
    scheduler: Scheduler,
    start_ms: float,
    end_ms: float,
) -> StepRecord:
    """What is told of a step that has ended; the last of `attempts` fitted."""
    plans = [attempt.plan for attempt in attempts]
    return StepRecord(
        start_ms=start_ms,
        end_ms=end_ms,
        num_prefill_tokens=tokens.num_prefill,
        num_decode_tokens=tokens.num_decode,
        num_dropped_tokens=tokens.num_dropped,
        num_running=len(scheduler.running) + len(scheduler.ending),
        num_waiting=len(scheduler.waiting),
        num_preempted=sum(plan.num_preempted for plan in plans),
        num_cached_tokens=sum(plan.num_cached_tokens for plan in plans),
        num_adapter_loads=loads.num_loads,
        adapter_load_ms=loads.ms,
        num_memory_retries=len(attempts) - 1,
        num_kv_blocks_used=scheduler.blocks.num_used,
        num_kv_blocks=scheduler.blocks.num_blocks,
    )
