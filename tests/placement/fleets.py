"""Small fleets with models whose times are known by hand: 1 ms for a prompt's token, 20 ms for a decoding
step, 10 µs for a unit of rank, 1 MB a millisecond."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import Bounds
from caraserve_cli.perf.decode import DecodeModel
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.perf.lora_kernels import LoraKernelModel
from caraserve_cli.perf.prefill import PrefillModel
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.placement.request_facts import RequestFacts
from tests.perf.h200 import h200_profile

QUALITY = FitQuality(1, 0, 9)
PROFILE = replace(h200_profile(), link=LinkModel(0.0, 1e6, QUALITY))
MB = 10**6


class Clock:
    """Stands still until it is told."""

    def __init__(self, now_ms: float = 0.0) -> None:
        self.now_ms = now_ms

    def __call__(self) -> float:
        return self.now_ms


def kernel(*, is_padded: bool, alpha_ms: float = 0.01) -> LoraKernelModel:
    return LoraKernelModel(is_padded, alpha_ms, 0.0, QUALITY)


def step_model(*, is_padded: bool = False, alpha_ms: float = 0.01, step_ms: float = 20.0) -> StepModel:
    return StepModel(
        prefill=PrefillModel(0.0, 1.0, 0.0, 0.0, QUALITY),
        decode=DecodeModel((1,), (step_ms,), QUALITY),
        lora_kernel=kernel(is_padded=is_padded, alpha_ms=alpha_ms),
        max_batch_tokens=2048,
    )


def replica(
    name: str,
    model: StepModel | None = None,
    *,
    max_requests: int = 64,
    max_running: int = 64,
    kv_tokens: int = 32_000,
    pool_bytes: int = 1000 * MB,
    num_cpu_workers: int = 0,
) -> ReplicaFacts:
    return ReplicaFacts(
        name=name,
        profile=PROFILE,
        step_model=model or step_model(),
        config=EngineConfig(
            num_kv_blocks=kv_tokens // 16,
            adapter_memory_bytes=pool_bytes,
            max_context_tokens=4096,
            max_running=max_running,
        ),
        max_requests=max_requests,
        num_cpu_workers=num_cpu_workers,
    )


def request(
    name: str,
    lora_rank: int = 0,
    *,
    adapter: str | None = None,
    prompt_tokens: int = 10,
    output_tokens: int = 10,
    adapter_bytes: int = MB,
    arrival_ms: float = 0.0,
    tpot_slo_ms: float | None = None,
    ttft_slo_ms: float | None = None,
    deadline_ms: float | None = None,
) -> RequestFacts:
    """With an adapter of its own, if it has a rank and none is named."""
    return RequestFacts(
        id=name,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        arrival_ms=arrival_ms,
        adapter=(adapter or f"of {name}") if lora_rank else None,
        lora_rank=lora_rank,
        adapter_bytes=adapter_bytes if lora_rank else 0,
        bounds=Bounds(tpot_slo_ms=tpot_slo_ms, ttft_slo_ms=ttft_slo_ms, deadline_ms=deadline_ms),
    )


def loads_of(
    replicas: Iterable[ReplicaFacts],
    placed: Sequence[Sequence[RequestFacts]] = (),
    *,
    clock: Clock | None = None,
    start: bool = True,
) -> ReplicaLoads:
    """The i-th replica with the i-th of `placed`; they run if `start`, and their adapters are there."""
    loads = ReplicaLoads(list(replicas), clock or Clock())
    for index, requests in enumerate(placed):
        for each in requests:
            loads.place(each, index)
            if each.adapter is not None:
                loads.places.note_resident(each.adapter, index)
            if start:
                loads.start(each.id)
        loads.note_link_busy(index, float("-inf"))
    return loads


def fleet(*names: str) -> list[ReplicaFacts]:
    return [replica(name) for name in names]
