"""Adapters as the device pool holds them: all of one adapter's weights in one contiguous piece of memory.

The layout is `caraserve_kernels.lora_layout`'s; here it meets the base's modules and the canonical weights.
What is packed lies in pinned host memory where there is a GPU, so that a load is one copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.adapters.weights import AdapterWeights, LoraPair, PackedWeights
from caraserve_cli.core import FUSED_MODULES, BaseShape
from caraserve_cli.errors import AdapterError
from caraserve_kernels.lora_layout import AdapterLayout, FusedGroup, ModulePiece
from caraserve_kernels.lora_work import Padding

# The largest rank of a module that the kernels' working memory has room for.
MAX_LORA_RANK = 512


def fused_groups(shape: BaseShape) -> tuple[FusedGroup, ...]:
    """The base's fused projections, in the order of FUSED_MODULES."""
    return tuple(
        FusedGroup(
            modules, shape.module_shape(modules[0])[0], tuple(shape.module_shape(m)[1] for m in modules)
        )
        for modules in FUSED_MODULES
    )


class LoraForm(Protocol):
    """How adapters of unequal ranks are stored and computed, the same for all of a replica.

    `kernel` is what the user calls it.
    """

    kernel: ClassVar[str]

    def lay_out(self, shape: BaseShape, weights: AdapterWeights) -> AdapterLayout:
        """Where the adapter's pieces lie.

        Raises:
            AdapterError: the form has no room for its rank.
        """

    def padding(self, largest_ranks: NDArray[np.int32]) -> Padding | None:
        """What a step computes whose adapters have these largest ranks, [adapters]."""


@dataclass(frozen=True, slots=True)
class UnpaddedForm:
    """Every module by its own rank (S-LoRA's MBGMV)."""

    kernel: ClassVar[str] = "mbgmv"

    def lay_out(self, shape: BaseShape, weights: AdapterWeights) -> AdapterLayout:
        """See `LoraForm`."""
        return _lay_out(shape, weights, None)

    def padding(self, largest_ranks: NDArray[np.int32]) -> None:
        """See `LoraForm`."""


@dataclass(frozen=True, slots=True)
class PaddedForm:
    """Every module stored with `padded_rank` rows, and in each step all adapters computed with the largest
    rank among them (Punica's BGMV): the form that S-LoRA and CaraServe are compared with."""

    padded_rank: int

    kernel: ClassVar[str] = "bgmv"

    def __post_init__(self) -> None:
        if not 1 <= self.padded_rank <= MAX_LORA_RANK:
            raise ValueError(f"padded to rank {self.padded_rank}; it must be 1 to {MAX_LORA_RANK}")

    def lay_out(self, shape: BaseShape, weights: AdapterWeights) -> AdapterLayout:
        """See `LoraForm`."""
        if weights.lora_rank > self.padded_rank:
            # `padded_rank` was read from the files at the start.
            raise AdapterError(
                weights.name,
                f"has rank {weights.lora_rank}, and when the run began no adapter had more than "
                f"{self.padded_rank}: its files changed; run again with the new ones",
            )
        return _lay_out(shape, weights, self.padded_rank)

    def padding(self, largest_ranks: NDArray[np.int32]) -> Padding:
        """See `LoraForm`."""
        return Padding(self.padded_rank, int(largest_ranks.max()))


def _lay_out(shape: BaseShape, weights: AdapterWeights, padded_rank: int | None) -> AdapterLayout:
    return AdapterLayout.build(
        fused_groups(shape),
        shape.num_layers,
        {key: pair.lora_rank for key, pair in weights.pairs.items()},
        {key for key, pair in weights.pairs.items() if pair.bias is not None},
        padded_rank,
    )


@dataclass(frozen=True, slots=True)
class Packer:
    """Packs adapters for a pool.

    Attributes:
        shape: the base's.
        form: the pool's.
        pinned: whether to use pinned memory, which only a machine with CUDA has.
    """

    shape: BaseShape
    form: LoraForm
    pinned: bool

    def pack(self, weights: AdapterWeights) -> AdapterWeights:
        """The same weights, in one piece; the pairs are views of it.

        Raises:
            AdapterError: the adapter's rank is above MAX_LORA_RANK, or above what the form has room for.
        """
        if weights.lora_rank > MAX_LORA_RANK:
            raise AdapterError(
                weights.name,
                f"has rank {weights.lora_rank}, and on a GPU ranks up to {MAX_LORA_RANK} are served; "
                "use --device cpu",
            )
        layout = self.form.lay_out(self.shape, weights)
        dtype = next(iter(weights.pairs.values())).a.dtype
        # Zeros: the padding is moved to the device and multiplied there.
        blob = torch.zeros(layout.num_elements, dtype=dtype, pin_memory=self.pinned)
        pairs = {key: _place(blob, layout.pieces[key], pair) for key, pair in weights.pairs.items()}
        return AdapterWeights(weights.name, pairs, PackedWeights(layout, blob))


def _place(blob: Tensor, piece: ModulePiece, pair: LoraPair) -> LoraPair:
    """Copy a pair to its place in the blob; the pair as views of it."""

    def view(offset: int, *size: int) -> Tensor:
        return blob[offset : offset + torch.Size(size).numel()].view(size)

    placed = LoraPair(
        view(piece.a_offset, piece.lora_rank, piece.in_width),
        view(piece.b_offset, piece.lora_rank, piece.out_width),
        None if pair.bias is None else view(piece.bias_offset, piece.out_width),
    )
    for target, source in zip(placed.tensors, pair.tensors, strict=True):
        target.copy_(source)
    return placed
