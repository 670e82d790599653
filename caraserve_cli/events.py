"""What an engine tells of its work while it works, and to whom. Data and nothing but data, as in `core`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one engine step did, for reports and progress.

    `num_dropped_tokens` were computed for answers that turned out to have ended, and are in no other count.
    `num_answer_tokens`: by how many tokens it made answers longer; first ones, which prompts yield, included.
    `num_memory_retries`: how often it was tried in vain, for the device's memory did not hold it.
    `is_beside`: it was computed beside other steps, whose times overlap its own. `replica`: which of a
    fleet's replicas computed it, from 0.

    Of adapters: those loaded since the record before are `num_adapter_loads`, in all `adapter_bytes` to be
    copied; `loads_by_strategy` counts them by what `core.ColdStart` calls their way. `num_assists`: chunks of
    which CPU workers had a part, `num_failed_assists` those of them whose part came too late;
    `num_spared_loads`: answers that ended with the step and whose adapters were not loaded for them, as CPU
    workers computed all of their prompts. `stall_ms`: how long the step stood still for adapters on their
    way, `others_stalled_ms` that time for each sequence of the step that uses none of them, added up.
    `adapter_pool_used_bytes` of the device's `adapter_pool_bytes` hold adapters, in use or kept.

    Of its time: `predicted_ms` was said when it was launched; None where nothing was, and `why_unpredicted`
    (of `perf.step_predictor.Unpredicted`) says why. `prediction_source` says from what, `kind` is of
    `perf.step_load.StepKind`. It was said of `num_decoding` chunks of one token, `num_prompt_tokens` in
    longer ones, `num_adapters` distinct adapters, the sum and the largest of their ranks, and `kv_tokens` in
    the cache. It is to be compared with end_ms - start_ms -
    stall_ms: from the end of the step before, or from when this one was begun to be planned if that was
    later. `is_alone`: no other step was under way when it was launched; the host's time is then in it.
    """

    start_ms: float
    end_ms: float
    num_prefill_tokens: int
    num_decode_tokens: int
    num_running: int
    num_waiting: int
    num_preempted: int
    num_cached_tokens: int
    num_adapter_loads: int
    adapter_load_ms: float
    num_kv_blocks_used: int
    num_kv_blocks: int
    num_dropped_tokens: int = 0
    num_answer_tokens: int = 0
    num_memory_retries: int = 0
    adapter_bytes: int = 0
    loads_by_strategy: Mapping[str, int] = field(default_factory=dict)
    num_assists: int = 0
    num_failed_assists: int = 0
    num_spared_loads: int = 0
    num_lost_workers: int = 0
    stall_ms: float = 0.0
    others_stalled_ms: float = 0.0
    is_beside: bool = False
    predicted_ms: float | None = None
    why_unpredicted: str = ""
    prediction_source: str = ""
    kind: str = ""
    num_decoding: int = 0
    num_prompt_tokens: int = 0
    num_adapters: int = 0
    lora_rank_sum: int = 0
    lora_rank_max: int = 0
    kv_tokens: int = 0
    is_alone: bool = False
    adapter_pool_used_bytes: int = 0
    adapter_pool_bytes: int = 0
    replica: int = 0


class EventSink(Protocol):
    """Where an engine tells what it did. The engine knows no files and no reports."""

    def on_step(self, record: StepRecord) -> None: ...
