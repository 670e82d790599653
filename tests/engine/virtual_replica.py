"""A replica without a model on virtual time: the real scheduler, steps as long as a model of time says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, Bounds, Request, SamplingParams, Sequence, Timings
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.engine.scheduling import SchedulingPolicy
from caraserve_cli.perf.batch_load import BatchLoad, RankSums
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.prefill import PrefillModel
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.report.metrics import attains_slo, time_per_output_token_ms
from caraserve_cli.step_plan import StepPlan
from tests.engine.planning import UNIT

UNBOUNDED = Bounds()
_QUALITY = FitQuality(1, 0, 9)


def step_model(max_batch_tokens: int = 2048) -> StepModel:
    """Decoding from 6 ms for one to 10 ms for 64; a prompt token costs 0.05 ms, a rank 0.01 ms."""
    return StepModel(
        prefill=PrefillModel(6.0, 0.05, 0.0, 1e6, _QUALITY),
        decode=DecodeModel((1, 64), (6.0, 10.0), _QUALITY),
        lora_kernel=LoraKernelModel(False, 0.01, 0.1, _QUALITY),
        max_batch_tokens=max_batch_tokens,
    )


@dataclass
class VirtualReplica:
    """Answers requests when `run` is called.

    Attributes:
        now_ms: the virtual time.
        plans: those of the last run.
    """

    make_policy: Callable[[EngineConfig], SchedulingPolicy]
    config: EngineConfig
    model: StepModel = field(default_factory=step_model)
    now_ms: float = 0.0
    plans: list[StepPlan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.config, lambda: self.now_ms, policy=self.make_policy(self.config))

    def run(self, sequences: Iterable[tuple[Sequence, AdapterInfo | None]]) -> None:
        """Answer all, each queued when it has arrived."""
        coming = sorted(sequences, key=lambda each: each[0].timings.arrival_ms)
        self.plans.clear()
        while coming or self.scheduler.has_work:
            if not self.scheduler.has_work:
                self.now_ms = max(self.now_ms, coming[0][0].timings.arrival_ms)
            while coming and coming[0][0].timings.arrival_ms <= self.now_ms:
                self.scheduler.add(*coming.pop(0))
            self.step()

    def step(self) -> StepPlan:
        """Plan a step, and let its time pass."""
        plan = self.scheduler.plan()
        self.scheduler.check_integrity()
        self.scheduler.commit(plan)
        self.now_ms += self.step_ms(plan)
        for chunk in plan.chunks:
            if chunk.yields_token:
                self._take_token(chunk.sequence)
        self.scheduler.check_integrity()
        self.plans.append(plan)
        return plan

    def step_ms(self, plan: StepPlan) -> float:
        """How long a plan takes."""
        prompts = [chunk.num_tokens for chunk in plan.chunks if chunk.num_tokens > 1]
        adapters = {chunk.sequence.request.adapter for chunk in plan.chunks} - {None}
        lora_ranks = [int(str(name).partition("-")[0]) for name in adapters]
        ranks = RankSums(len(lora_ranks), sum(lora_ranks), max(lora_ranks, default=0))
        num_decoding = len(plan.chunks) - len(prompts)
        if prompts:
            return self.model.prompts_ms(sum(prompts), ranks, num_decoding)
        return self.model.decode_ms(BatchLoad(num_decoding, ranks))

    def _take_token(self, sequence: Sequence) -> None:
        sequence.num_pending_tokens -= 1
        sequence.token_ids.append(7)
        if sequence.timings.first_token_ms is None:
            sequence.timings.first_token_ms = self.now_ms
        sequence.timings.last_token_ms = self.now_ms
        if sequence.num_output_tokens >= sequence.max_output_tokens:
            self.scheduler.finish(sequence)


def make_config(**changes: int) -> EngineConfig:
    settings = {
        "num_kv_blocks": 4096,
        "adapter_memory_bytes": 4096 * UNIT,
        "max_context_tokens": 4096,
        "max_running": 64,
        "max_batch_tokens": 2048,
        "prefill_chunk_tokens": 512,
        **changes,
    }
    return EngineConfig(**settings)  # type: ignore[arg-type]


def make_sequence(
    name: str,
    num_prompt: int,
    max_tokens: int,
    bounds: Bounds = UNBOUNDED,
    *,
    arrival_ms: float = 0.0,
    lora_rank: int = 0,
    ignore_eos: bool = True,
) -> tuple[Sequence, AdapterInfo | None]:
    """A sequence and its adapter, whose name begins with its rank."""
    adapter = None
    if lora_rank:
        adapter = AdapterInfo(
            name=f"{lora_rank}-{name}", lora_rank=lora_rank, num_bytes=UNIT, identity=name.encode()
        )
    request = Request(
        id=name,
        line=0,
        prompt_token_ids=(1,) * num_prompt,
        adapter=None if adapter is None else adapter.name,
        sampling=SamplingParams(max_tokens=max_tokens, ignore_eos=ignore_eos),
        bounds=bounds,
        arrival_ms=arrival_ms,
    )
    return Sequence(request, Timings(arrival_ms), [1] * num_prompt, num_prompt, max_tokens), adapter


def is_attained(sequence: Sequence) -> bool | None:
    """Whether a finished sequence met its bounds."""
    timings = sequence.timings
    assert timings.first_token_ms is not None
    assert timings.last_token_ms is not None
    return attains_slo(
        sequence.request.bounds,
        ttft_ms=timings.first_token_ms - timings.arrival_ms,
        tpot_ms=time_per_output_token_ms(
            timings.first_token_ms, timings.last_token_ms, sequence.num_output_tokens
        ),
        latency_ms=timings.last_token_ms - timings.arrival_ms,
    )
