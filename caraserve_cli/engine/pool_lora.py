"""The LoRA context of a GPU's steps: the device pool's adapters, computed by the paged kernels.

Knows the pool and the forms in which a step can be computed; which adapters a step has is in its work lists.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.adapters.packing import MAX_LORA_RANK, LoraForm
from caraserve_cli.adapters.transfer import Transfer
from caraserve_cli.core import FUSED_MODULES
from caraserve_kernels.linear import can_overlap
from caraserve_kernels.lora_layout import MAX_GROUP_MODULES
from caraserve_kernels.lora_pool import (
    CHUNK_CONFIG,
    DECODE_CONFIG,
    FEW_CONFIG,
    PREFILL_CONFIG,
    SHARED_CONFIG,
    LoraConfig,
    PooledLora,
)
from caraserve_kernels.lora_work import build_work, work_capacity

# Where lists may begin in the work buffer, at a multiple of it: kernels are compiled for aligned memory.
WORK_ALIGN_ELEMENTS = 64

# Tokens an adapter from which decoding computes them together, on tensor cores: with 2 that was 7% slower
# than one by one, with 4 a third faster (`lora_pool`'s SHARED).
SHARED_TOKENS = 2.5
# Tokens up to which a decoding step has few, see `lora_pool`'s FEW; and one with prompts, see its CHUNK: with
# 1,024 that is 10% slower for one prompt and 6% faster for eight; with 640 beside decoding 20 to 30% faster.
FEW_TOKENS = 16
FEW_CHUNK_TOKENS = 1024

Ints = NDArray[np.int32]


def align_work(num_elements: int) -> int:
    """The first place in a work buffer, from this many elements on, at which lists may begin."""
    return -(-num_elements // WORK_ALIGN_ELEMENTS) * WORK_ALIGN_ELEMENTS


class _Pair(NamedTuple):
    """How steps of a size are computed: adapters mostly distinct, and mostly shared."""

    distinct: LoraConfig
    shared: LoraConfig


@dataclass(frozen=True, slots=True, eq=False)
class _Ways:
    """How steps of a kind are computed: those of up to `few_tokens`, and those of more."""

    few_tokens: int
    few: _Pair
    more: _Pair

    def of(self, num_tokens: int) -> _Pair:
        """The two ways of a step of so many tokens."""
        return self.few if num_tokens <= self.few_tokens else self.more

    @property
    def all(self) -> tuple[LoraConfig, ...]:
        return tuple(dict.fromkeys((*self.few, *self.more)))

    def in_one_order(self) -> _Ways:
        """Sums of an adapter's rows are taken in the same order at any number of tokens, unless shared."""
        return _Ways(self.few_tokens, self.more, self.more)

    def overlapping(self, overlap: bool) -> _Ways:
        few, more = (
            _Pair(*(dataclasses.replace(way, overlap=overlap) for way in pair))
            for pair in (self.few, self.more)
        )
        return _Ways(self.few_tokens, few, more)


@dataclass(frozen=True, slots=True)
class LoraWay:
    """How one step's LoRA is computed: kernels, and the fused groups that they are launched for."""

    config: LoraConfig
    groups: frozenset[int]


_DECODE_WAYS = _Ways(FEW_TOKENS, _Pair(FEW_CONFIG, SHARED_CONFIG), _Pair(DECODE_CONFIG, SHARED_CONFIG))
_CHUNK_WAYS = _Ways(
    FEW_CHUNK_TOKENS, _Pair(CHUNK_CONFIG, CHUNK_CONFIG), _Pair(PREFILL_CONFIG, PREFILL_CONFIG)
)


@dataclass(frozen=True, slots=True, eq=False)
class PoolLoraContext:
    """`LoraContext` of steps whose work lists are of `pooled.config`.

    A step that is computed as it comes waits for each layer of the transfers that are its `gates`; one that
    is captured has none, and is replayed when all have arrived. Kernels that would find no work, since no
    adapter changes their modules, are not launched: 256 of them a step, each of some microseconds, on
    Llama-2-7B with q, k, v and o.
    """

    pooled: PooledLora
    groups: frozenset[int]
    gates: tuple[Transfer, ...]

    def begin(self, layer: int, modules: tuple[str, ...], x: Tensor) -> bool:
        """See `LoraContext`."""
        for gate in self.gates:
            gate.wait_for_layers((layer,))
        group = FUSED_MODULES.index(modules)
        return group in self.groups and self.pooled.begin(layer, group, x)

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """See `LoraContext`."""
        group = FUSED_MODULES.index(modules)
        if group in self.groups:
            self.pooled.add(layer, group, x, y)


class PoolLora:
    """Makes the work lists and the context of each step.

    Args:
        pool: the resident adapters.
        form: theirs.
        work: the device's work lists, [capacity].
        max_tokens: of a step.
        num_sms: multiprocessors of the GPU.
        decoding: whether the steps are decoding ones.
    """

    def __init__(
        self,
        pool: PackedPool,
        form: LoraForm,
        work: Tensor,
        max_tokens: int,
        num_sms: int,
        *,
        decoding: bool,
    ) -> None:
        self._pool, self._form = pool, form
        # What kernels read before the one in front of them has ended is there before the step's first kernel.
        overlap = can_overlap(work.device)
        ways = (_DECODE_WAYS if decoding else _CHUNK_WAYS).overlapping(overlap)
        # A run in float32 is for equal answers: a draw, too, should not depend on what else is in the batch.
        self._ways = ways.in_one_order() if pool.weights.dtype == torch.float32 else ways
        configs = self._ways.all
        most_splits = max(config.shrink.split_k for config in configs)
        h = torch.empty(
            most_splits, max_tokens, MAX_GROUP_MODULES, MAX_LORA_RANK, dtype=torch.float32, device=work.device
        )
        self._pooled = PooledLora(pool.groups, pool.weights, pool.table, work, h, configs[0], num_sms)

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
            for config in (_DECODE_WAYS if decoding else _CHUNK_WAYS).all
        )

    def ways(self, num_tokens: int) -> tuple[LoraWay, ...]:
        """How steps of so many tokens, padding included, can be computed with the adapters known so far."""
        return tuple(self._way(config) for config in dict.fromkeys(self._ways.of(num_tokens)))

    def choose(self, segments: Ints, num_tokens: int) -> LoraWay:
        """How a step of so many tokens, padding included, with these segments is computed."""
        distinct, shared = self._ways.of(num_tokens)
        if not segments.shape[0]:
            return self._way(distinct)
        return self._way(distinct if segments[:, 2].mean() < SHARED_TOKENS else shared)

    def _way(self, config: LoraConfig) -> LoraWay:
        return LoraWay(config, self._pool.used_groups)

    def context(self, way: LoraWay, gates: tuple[Transfer, ...] = (), first_work: int = 0) -> PoolLoraContext:
        """The context of steps computed so.

        Args:
            way: how.
            gates: the transfers that their adapters may still be in.
            first_work: where their lists begin in the work buffer, a multiple of WORK_ALIGN_ELEMENTS.
        """
        assert first_work % WORK_ALIGN_ELEMENTS == 0
        pooled = dataclasses.replace(self._pooled, config=way.config, work=self._pooled.work[first_work:])
        return PoolLoraContext(pooled, way.groups, gates)

    def write_work(self, work: Ints, segments: Ints, way: LoraWay) -> int:
        """Write a step's lists; how many elements they take."""
        padding = self._form.padding(self._pool.largest_ranks[segments[:, 0]])
        return build_work(work, segments, self._pool.stacked_rows, way.config.tiling, padding)
