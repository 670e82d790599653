"""Adapters as the device pool holds them: all of one adapter's weights in one contiguous piece of memory.

The layout is `caraserve_kernels.lora_layout`'s; here it meets the base's modules and the canonical weights.
What is packed lies in the host arena, or in memory of its own; pinned where there is a GPU, so that a load is
one copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.adapters.weights import AdapterOutline, AdapterWeights, LoraPair, PackedWeights
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

    def lay_out(self, shape: BaseShape, outline: AdapterOutline) -> AdapterLayout:
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

    def lay_out(self, shape: BaseShape, outline: AdapterOutline) -> AdapterLayout:
        """See `LoraForm`."""
        return _lay_out(shape, outline, None)

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

    def lay_out(self, shape: BaseShape, outline: AdapterOutline) -> AdapterLayout:
        """See `LoraForm`."""
        if outline.lora_rank > self.padded_rank:
            # `padded_rank` was read from the files at the start.
            raise AdapterError(
                outline.name,
                f"has rank {outline.lora_rank}, and when the run began no adapter had more than "
                f"{self.padded_rank}: its files changed; run again with the new ones",
            )
        return _lay_out(shape, outline, self.padded_rank)

    def padding(self, largest_ranks: NDArray[np.int32]) -> Padding:
        """See `LoraForm`."""
        return Padding(self.padded_rank, int(largest_ranks.max(initial=0)))


def _lay_out(shape: BaseShape, outline: AdapterOutline, padded_rank: int | None) -> AdapterLayout:
    return AdapterLayout.build(
        fused_groups(shape), shape.num_layers, outline.lora_ranks, outline.biased, padded_rank
    )


class BlobRoom(NamedTuple):
    """Where a blob goes: memory of its size, and where in the host arena that is."""

    memory: Tensor
    arena_offset_bytes: int


@dataclass(frozen=True, slots=True)
class Packer:
    """Packs adapters for a pool.

    Attributes:
        shape: the base's.
        form: the pool's.
        pinned: whether memory that `pack` allocates is pinned, which only a machine with CUDA can.
    """

    shape: BaseShape
    form: LoraForm
    pinned: bool

    def lay_out(self, outline: AdapterOutline) -> AdapterLayout:
        """Where an adapter's pieces will lie.

        Raises:
            AdapterError: its rank is above MAX_LORA_RANK, or above what the form has room for.
        """
        if outline.lora_rank > MAX_LORA_RANK:
            raise AdapterError(
                outline.name,
                f"has rank {outline.lora_rank}, and on a GPU ranks up to {MAX_LORA_RANK} are served; "
                "use --device cpu",
            )
        return self.form.lay_out(self.shape, outline)

    def place(
        self, outline: AdapterOutline, dtype: torch.dtype, room: BlobRoom | None = None
    ) -> AdapterWeights:
        """An adapter in one piece whose weights are still to be written: zeros, its pairs views of the piece.

        Args:
            outline: the adapter's.
            dtype: of the weights.
            room: where the piece goes; `lay_out` tells how many elements it needs. None for memory of its
                own.

        Raises:
            AdapterError: as `lay_out`.
        """
        layout = self.lay_out(outline)
        # Zeros: the padding is moved to the device and multiplied there.
        if room is None:
            blob = torch.zeros(layout.num_elements, dtype=dtype, pin_memory=self.pinned)
        else:
            blob = room.memory.zero_()
            assert (blob.numel(), blob.dtype) == (layout.num_elements, dtype)
        pairs = {
            key: _view_pair(blob, layout.pieces[key], biased=key in outline.biased)
            for key in outline.lora_ranks
        }
        packed = PackedWeights(layout, blob, None if room is None else room.arena_offset_bytes)
        return AdapterWeights(outline.name, pairs, packed)

    def pack(self, weights: AdapterWeights) -> AdapterWeights:
        """A copy of the weights in one piece, in memory of its own.

        Raises:
            AdapterError: as `lay_out`.
        """
        packed = self.place(weights.outline, next(iter(weights.pairs.values())).a.dtype)
        for key, pair in weights.pairs.items():
            for target, source in zip(packed.pairs[key].tensors, pair.tensors, strict=True):
                target.copy_(source)
        return packed


def _view_pair(blob: Tensor, piece: ModulePiece, *, biased: bool) -> LoraPair:
    """A module's place in the blob."""

    def view(offset: int, *size: int) -> Tensor:
        return blob[offset : offset + torch.Size(size).numel()].view(size)

    return LoraPair(
        view(piece.a_offset, piece.lora_rank, piece.in_width),
        view(piece.b_offset, piece.lora_rank, piece.out_width),
        view(piece.bias_offset, piece.out_width) if biased else None,
    )
