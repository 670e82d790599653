"""How long an adapter that is not on a device takes to get there, and a prompt whose LoRA part CPU workers
compute, on each replica."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from caraserve_cli.core import BaseShape
from caraserve_cli.perf.adapter_ops import adapter_ops
from caraserve_cli.perf.batch_load import FloatArray
from caraserve_cli.perf.cpu_lora import CpuLoraModel
from caraserve_cli.perf.cpu_ops import cpu_ops_ms
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.placement.request_facts import RequestFacts


class _CpuWorkers(NamedTuple):
    """What the time of CPU workers depends on; equal on equal machines."""

    model: CpuLoraModel
    shape: BaseShape
    dtype_bytes: int
    tokens_per_worker: int
    num_workers: int
    chunk_tokens: int


class ColdTimes:
    """The times of N replicas."""

    def __init__(self, replicas: Sequence[ReplicaFacts]) -> None:
        links = [replica.profile.link for replica in replicas]
        self._latency_ms = np.array([link.latency_ms if link else 0.0 for link in links])
        self._ms_per_byte = np.array([1 / link.bytes_per_ms if link else 0.0 for link in links])
        workers = [_workers(replica) for replica in replicas]
        self._kinds = list(dict.fromkeys(workers))
        self._kind_of = np.array([self._kinds.index(each) for each in workers], dtype=np.int64)

    def copy_ms(self, num_bytes: int) -> FloatArray:
        """Milliseconds that a free link takes for `num_bytes`, shape [N]; 0 where nothing is copied."""
        copy_ms: FloatArray = self._latency_ms + num_bytes * self._ms_per_byte
        return copy_ms

    def copy_there_ms(self, num_bytes: int, replica: int) -> float:
        """The same of one replica."""
        return float(self._latency_ms[replica] + num_bytes * self._ms_per_byte[replica])

    def assist_ms(self, request: RequestFacts) -> FloatArray:
        """Milliseconds in which free CPU workers compute the LoRA part of a request's whole prompt, shape
        [N]; infinite where there are none. Its adapter is not None."""
        of_kinds = np.array(
            [
                math.inf
                if kind is None
                else _assist_ms(kind, request.prompt_tokens, request.lora_rank, request.adapter_bytes)
                for kind in self._kinds
            ]
        )
        assist_ms: FloatArray = of_kinds.take(self._kind_of)
        return assist_ms


def _workers(replica: ReplicaFacts) -> _CpuWorkers | None:
    profile = replica.profile
    if profile.cpu_lora is None or not replica.num_cpu_workers:
        return None
    return _CpuWorkers(
        profile.cpu_lora,
        profile.shape,
        profile.dtype_bytes,
        profile.tokens_per_worker,
        replica.num_cpu_workers,
        replica.config.prefill_chunk_tokens,
    )


# As many prompts' lengths and ranks as are met again and again. Chosen, not measured.
@lru_cache(maxsize=8192)
def _assist_ms(workers: _CpuWorkers, prompt_tokens: int, lora_rank: int, adapter_bytes: int) -> float:
    """Of a prompt longer than a chunk, as many times a whole chunk as it has tokens."""
    num_tokens = min(prompt_tokens, workers.chunk_tokens)
    num_layers = workers.shape.num_layers
    row_elements = adapter_bytes // (max(1, lora_rank) * num_layers * workers.dtype_bytes)
    ops_ms = cpu_ops_ms(
        workers.model,
        adapter_ops(workers.shape, row_elements),
        num_tokens,
        max(1, lora_rank),
        workers.num_workers,
        workers.tokens_per_worker,
    )
    return num_layers * sum(ops_ms) * prompt_tokens / num_tokens
