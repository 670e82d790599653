"""From steps under way to what is told of them: which tokens counted, how often a step had to be tried."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from caraserve_cli.core import SequenceStatus
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.events import StepRecord
from caraserve_cli.perf.step_predictor import StepPrediction
from caraserve_cli.step_plan import AdapterLoad, StepPlan


class Attempt(NamedTuple):
    """A plan that was tried: its adapters are moved and its sequences admitted, whether it fitted or not."""

    plan: StepPlan
    start_ms: float


class Loads(NamedTuple):
    """Adapters loaded, by what `ColdStart` calls their way, what it took, host and link together, and what is
    to be copied."""

    by_strategy: Counter[str]
    ms: float
    num_bytes: int


@dataclass(slots=True)
class LoadCount:
    """The loads that no step record tells of yet: plans may load adapters and compute nothing."""

    by_strategy: Counter[str] = field(default_factory=Counter)
    host_ms: float = 0.0
    told_bytes: int = 0

    def note(self, plan: StepPlan, moving_ms: float) -> None:
        """The adapters of a plan were evicted, moved and loaded in `moving_ms`."""
        if plan.num_adapter_loads:
            self.by_strategy.update(op.how.value for op in plan.pool_ops if isinstance(op, AdapterLoad))
            self.host_ms += moving_ms

    def take(self, copy_ms: float, copied_bytes: int) -> Loads:
        """All so far; `copy_ms` is the link's part of it, `copied_bytes` all that was ever to be copied."""
        loads = Loads(self.by_strategy, self.host_ms + copy_ms, copied_bytes - self.told_bytes)
        self.by_strategy, self.host_ms, self.told_bytes = Counter(), 0.0, copied_bytes
        return loads


class ColdCosts(NamedTuple):
    """What adapters on their way cost in a step; see `StepRecord`."""

    num_assists: int
    num_failed_assists: int
    num_spared_loads: int
    num_lost_workers: int
    stall_ms: float
    others_stalled_ms: float


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
    cold_costs: ColdCosts,
    scheduler: Scheduler,
    prediction: StepPrediction,
    prediction_source: str,
    start_ms: float,
    end_ms: float,
) -> StepRecord:
    """What is told of a step that has ended; the last of `attempts` fitted."""
    plans = [attempt.plan for attempt in attempts]
    load = prediction.load
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
        num_adapter_loads=loads.by_strategy.total(),
        adapter_load_ms=loads.ms,
        adapter_bytes=loads.num_bytes,
        loads_by_strategy=loads.by_strategy,
        **cold_costs._asdict(),
        num_memory_retries=len(attempts) - 1,
        num_kv_blocks_used=scheduler.blocks.num_used,
        num_kv_blocks=scheduler.blocks.num_blocks,
        predicted_ms=prediction.ms,
        why_unpredicted=prediction.why_not.value if prediction.why_not else "",
        prediction_source=prediction_source,
        kind=load.kind.value,
        num_decoding=load.num_decoding,
        num_prompt_tokens=load.prompt_tokens,
        num_adapters=load.ranks.num_adapters,
        lora_rank_sum=load.ranks.lora_rank_sum,
        lora_rank_max=load.ranks.lora_rank_max,
        kv_tokens=load.kv_tokens,
        is_alone=prediction.is_alone,
        adapter_pool_used_bytes=scheduler.residency.used_bytes,
        adapter_pool_bytes=scheduler.residency.capacity_bytes,
    )
