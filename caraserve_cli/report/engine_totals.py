"""Running totals of what the engine did, step by step. Knows nothing of requests or answers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from caraserve_cli.events import StepRecord
from caraserve_cli.report.metrics import share


@dataclass(slots=True, kw_only=True)
class EngineTotals:
    """Sums and peaks over the steps of one session; an `EventSink`."""

    steps: int = 0
    steps_beside: int = 0
    busy_ms: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    dropped_tokens: int = 0
    answer_tokens: int = 0
    prefix_cached_tokens: int = 0
    preemptions: int = 0
    memory_retries: int = 0
    adapter_loads: int = 0
    adapter_load_ms: float = 0.0
    loads_by_strategy: Counter[str] = field(default_factory=Counter)
    adapter_bytes: int = 0
    assists: int = 0
    failed_assists: int = 0
    spared_loads: int = 0
    lost_workers: int = 0
    stall_ms: float = 0.0
    others_stalled_ms: float = 0.0
    running_sum: int = 0
    peak_running: int = 0
    peak_waiting: int = 0
    peak_kv_blocks_used: int = 0
    kv_blocks: int = 0

    def on_step(self, record: StepRecord) -> None:
        if record.is_beside:
            self.steps_beside += 1
        else:
            self.steps += 1
            self.busy_ms += record.end_ms - record.start_ms
            self.running_sum += record.num_running
        self.prefill_tokens += record.num_prefill_tokens
        self.decode_tokens += record.num_decode_tokens
        self.dropped_tokens += record.num_dropped_tokens
        self.answer_tokens += record.num_answer_tokens
        self.prefix_cached_tokens += record.num_cached_tokens
        self.preemptions += record.num_preempted
        self.memory_retries += record.num_memory_retries
        self.adapter_loads += record.num_adapter_loads
        self.adapter_load_ms += record.adapter_load_ms
        self.loads_by_strategy.update(record.loads_by_strategy)
        self.adapter_bytes += record.adapter_bytes
        self.assists += record.num_assists
        self.failed_assists += record.num_failed_assists
        self.spared_loads += record.num_spared_loads
        self.lost_workers += record.num_lost_workers
        self.stall_ms += record.stall_ms
        self.others_stalled_ms += record.others_stalled_ms
        self.peak_running = max(self.peak_running, record.num_running)
        self.peak_waiting = max(self.peak_waiting, record.num_waiting)
        self.peak_kv_blocks_used = max(self.peak_kv_blocks_used, record.num_kv_blocks_used)
        self.kv_blocks = max(self.kv_blocks, record.num_kv_blocks)

    @property
    def mean_running(self) -> float | None:
        """Mean number of requests in a step's batch."""
        return share(self.running_sum, self.steps)

    @property
    def peak_kv_use(self) -> float | None:
        """Largest share of the KV blocks in use after a step, 0 to 1."""
        return share(self.peak_kv_blocks_used, self.kv_blocks)
