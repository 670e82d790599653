"""Plans without a model: tokens are made up, everything else is the real scheduler."""

from __future__ import annotations

from collections.abc import Mapping

from caraserve_cli.adapters.extents import ALIGNMENT_BYTES
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, Request, SamplingParams, Sequence, Timings
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.step_plan import StepPlan

BLOCK_TOKENS = 4
UNIT = ALIGNMENT_BYTES


def make_scheduler(**changes: int | bool) -> Scheduler:
    settings = {
        "num_kv_blocks": 16,
        "adapter_memory_bytes": 100 * UNIT,
        "max_context_tokens": 64,
        "kv_block_tokens": BLOCK_TOKENS,
        "max_running": 8,
        "max_batch_tokens": 32,
        "prefill_chunk_tokens": 8,
        **changes,
    }
    return Scheduler(EngineConfig(**settings), clock_ms=lambda: 0.0)  # type: ignore[arg-type]


def make_adapter(name: str, num_units: int = 40) -> AdapterInfo:
    return AdapterInfo(name=name, lora_rank=8, num_bytes=num_units * UNIT, identity=name.encode())


def add(
    scheduler: Scheduler,
    name: str,
    num_prompt: int,
    max_tokens: int = 4,
    adapter: AdapterInfo | None = None,
    prompt: list[int] | None = None,
) -> Sequence:
    token_ids = prompt if prompt is not None else [hash(name) % 1000 + i for i in range(num_prompt)]
    request = Request(
        id=name,
        line=0,
        prompt_token_ids=tuple(token_ids),
        adapter=adapter.name if adapter else None,
        sampling=SamplingParams(max_tokens=max_tokens),
    )
    sequence = Sequence(request, Timings(0.0), list(token_ids), len(token_ids), max_tokens)
    sequence.prefix_root = adapter.identity if adapter else b""
    scheduler.add(sequence, adapter)
    return sequence


def run_step(scheduler: Scheduler, num_outputs: Mapping[Sequence, int] | None = None) -> StepPlan:
    """Plan, pretend to compute, commit; sequences end at their max_tokens, or sooner where `num_outputs` says
    so."""
    plan = scheduler.plan()
    scheduler.check_integrity()
    scheduler.commit(plan)
    for chunk in plan.chunks:
        if chunk.yields_token:
            chunk.sequence.num_pending_tokens -= 1
            chunk.sequence.token_ids.append(7)
            most = (num_outputs or {}).get(chunk.sequence, chunk.sequence.max_output_tokens)
            if chunk.sequence.num_output_tokens >= most:
                scheduler.finish(chunk.sequence)
    scheduler.check_integrity()
    return plan


def chunks_of(plan: StepPlan) -> dict[str, tuple[int, int]]:
    return {c.sequence.request.id: (c.start, c.num_tokens) for c in plan.chunks}
