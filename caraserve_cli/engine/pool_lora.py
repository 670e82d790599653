"""The LoRA context of a GPU's steps: the device pool's adapters, computed by the paged kernels.

Knows the pool and the forms in which a step can be computed; which adapters a step has is in its work lists.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.adapters.packing import MAX_LORA_RANK
from caraserve_cli.core import FUSED_MODULES
from caraserve_kernels.linear import can_overlap
from caraserve_kernels.lora_layout import MAX_GROUP_MODULES
from caraserve_kernels.lora_pool import (
    DECODE_CONFIG,
    PREFILL_CONFIG,
    SHARED_CONFIG,
    LoraConfig,
    PooledLora,
)
from caraserve_kernels.lora_work import build_work, work_capacity

# Tokens an adapter from which decoding computes them together, on tensor cores. Chosen, not measured.
SHARED_TOKENS = 2.0

Ints = NDArray[np.int32]


def _configs(decoding: bool) -> tuple[LoraConfig, ...]:
    return (DECODE_CONFIG, SHARED_CONFIG) if decoding else (PREFILL_CONFIG,)


@dataclass(frozen=True, slots=True, eq=False)
class PoolLoraContext:
    """`LoraContext` of steps whose work lists are of `pooled.config`."""

    pooled: PooledLora

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """See `LoraContext`."""
        self.pooled.add(layer, FUSED_MODULES.index(modules), x, y)


class PoolLora:
    """Makes the work lists and the context of each step.

    Args:
        pool: the resident adapters.
        work: the device's work lists, [capacity].
        max_tokens: of a step.
        num_sms: multiprocessors of the GPU.
        decoding: whether the steps are decoding ones.
    """

    def __init__(
        self, pool: PackedPool, work: Tensor, max_tokens: int, num_sms: int, *, decoding: bool
    ) -> None:
        self._pool = pool
        # What kernels read before the one in front of them has ended is written by copies, before the step.
        overlap = can_overlap(work.device)
        self._configs = tuple(dataclasses.replace(config, overlap=overlap) for config in _configs(decoding))
        most_splits = max(config.shrink.split_k for config in self._configs)
        h = torch.empty(
            most_splits, max_tokens, MAX_GROUP_MODULES, MAX_LORA_RANK, dtype=torch.float32, device=work.device
        )
        first = PooledLora(pool.groups, pool.weights, pool.table, work, h, self._configs[0], num_sms)
        self._contexts = {
            config: PoolLoraContext(dataclasses.replace(first, config=config)) for config in self._configs
        }

    @staticmethod
    def work_capacity(max_tokens: int, max_segments: int, *, decoding: bool) -> int:
        """Elements that the work lists of any step fit in."""
        return max(
            work_capacity(
                len(FUSED_MODULES),
                max_tokens,
                max_segments,
                MAX_GROUP_MODULES * MAX_LORA_RANK,
                config.block_tokens,
                config.shrink.block_rows,
            )
            for config in _configs(decoding)
        )

    @property
    def configs(self) -> tuple[LoraConfig, ...]:
        """The forms in which steps can be computed."""
        return self._configs

    def choose(self, segments: Ints) -> LoraConfig:
        """How a step with these segments is computed."""
        if len(self._configs) == 1 or segments[:, 2].mean() < SHARED_TOKENS:
            return self._configs[0]
        return self._configs[1]

    def context(self, config: LoraConfig) -> PoolLoraContext:
        """The context of steps computed so."""
        return self._contexts[config]

    def write_work(self, work: Ints, segments: Ints, config: LoraConfig) -> int:
        """Write a step's lists; how many elements they take."""
        return build_work(
            work, segments, self._pool.stacked_rows, config.block_tokens, config.shrink.block_rows
        )
