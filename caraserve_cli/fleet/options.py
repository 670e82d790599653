"""What a replica is made of, as the user asked for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

WeightsSource = Literal["checkpoint", "random"]
DeviceName = Literal["auto", "cpu", "cuda"]
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
LoraKernel = Literal["mbgmv", "bgmv"]
SchedulingName = Literal["slack", "fcfs"]
OnMissedDeadline = Literal["run", "drop"]
ColdStartName = Literal["auto", "stream", "cpu-assist", "on-demand", "on-demand-blocking", "cached"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """Options of one replica; memory sizes are texts such as `4.3GB`, None where the replica decides, as it
    does of the number of CPU workers. `emulate_link_gbps` is None for the link that there is,
    `host_memory_bytes`, of the host's memory, for all that is free.
    `tensor_parallel` processes hold the base together; sizes are for each of them."""

    base: str
    adapter_roots: tuple[Path, ...] = ()
    weights: WeightsSource = "checkpoint"
    device: DeviceName = "auto"
    dtype: DtypeName = "auto"
    tensor_parallel: int = 1
    seed: int = 0
    lora_kernel: LoraKernel = "mbgmv"
    cold_start: ColdStartName = "auto"
    cpu_workers: int | None = None
    emulate_link_gbps: float | None = None
    gpu_memory: str | None = None
    kv_memory: str | None = None
    adapter_memory: str | None = None
    host_adapter_memory: str | None = None
    scheduling: SchedulingName = "slack"
    on_missed_deadline: OnMissedDeadline = "run"
    host_memory_bytes: int | None = None
    max_running: int = 256
    max_batch_tokens: int = 2048
    prefill_chunk_tokens: int = 512
    kv_block_tokens: int = 16
    prefix_caching: bool = True
