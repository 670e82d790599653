"""Adapters as the device pool holds them: all of one adapter's weights in one contiguous piece of memory.

The layout is `caraserve_kernels.lora_layout`'s; here it meets the base's modules and the canonical weights.
What is packed lies in pinned host memory where there is a GPU, so that a load is one copy.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from caraserve_cli.adapters.weights import AdapterWeights, LoraPair, PackedWeights
from caraserve_cli.core import FUSED_MODULES, BaseShape
from caraserve_cli.errors import AdapterError
from caraserve_kernels.lora_layout import AdapterLayout, FusedGroup, ModulePiece

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


@dataclass(frozen=True, slots=True)
class Packer:
    """Packs adapters for a pool.

    Attributes:
        shape: the base's.
        padded_rank: rows that every module gets in a padded (`bgmv`) pool; None packs each by its own rank.
        pinned: whether to use pinned memory, which only a machine with CUDA has.
    """

    shape: BaseShape
    padded_rank: int | None
    pinned: bool

    def pack(self, weights: AdapterWeights) -> AdapterWeights:
        """The same weights, in one piece; the pairs are views of it.

        Raises:
            AdapterError: the adapter's rank is above MAX_LORA_RANK.
        """
        if weights.lora_rank > MAX_LORA_RANK:
            raise AdapterError(
                weights.name,
                f"has rank {weights.lora_rank}, and on a GPU ranks up to {MAX_LORA_RANK} are served; "
                "use --device cpu",
            )
        layout = AdapterLayout.build(
            fused_groups(self.shape),
            self.shape.num_layers,
            {key: pair.lora_rank for key, pair in weights.pairs.items()},
            {key for key, pair in weights.pairs.items() if pair.bias is not None},
            self.padded_rank,
        )
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
