"""The canonical form of an adapter's weights: per module, rank rows that are ready to be multiplied.

The scale is folded into B, so a pair adds x·aᵀ·b_rows (+ bias) to its module's output. Row i of `a` and row i
of `b_rows` belong together: a rank is a row of each, whatever the rank of other adapters. Knows no files and
no PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from caraserve_cli.adapters.host_arena import arena_bytes
from caraserve_cli.adapters.module_key import ModuleKey
from caraserve_cli.core import BaseShape
from caraserve_kernels.lora_layout import AdapterLayout


@dataclass(frozen=True, slots=True, eq=False)
class LoraPair:
    """The change of one module: y += x·aᵀ·b_rows + bias, all in the dtype of the run, contiguous, on the CPU.

    `a` is [lora_rank, in]; `b_rows` [lora_rank, out] is B transposed and scaled; `bias` [out] is scaled too.
    """

    a: torch.Tensor
    b_rows: torch.Tensor
    bias: torch.Tensor | None = None

    @property
    def lora_rank(self) -> int:
        return self.a.shape[0]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.a, self.b_rows) if self.bias is None else (self.a, self.b_rows, self.bias)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class AdapterOutline:
    """What an adapter changes, and by which ranks: all that its size depends on.

    Attributes:
        name: of the adapter.
        lora_ranks: of every module that it changes, never empty.
        biased: those of them that have a bias.
    """

    name: str
    lora_ranks: Mapping[ModuleKey, int]
    biased: frozenset[ModuleKey] = frozenset()

    @property
    def lora_rank(self) -> int:
        """The largest rank of its modules."""
        return max(self.lora_ranks.values())

    def num_elements(self, shape: BaseShape) -> int:
        """Of all rank rows and biases, with no gaps between them."""
        rows = sum(
            lora_rank * sum(shape.module_shape(module)) for (_, module), lora_rank in self.lora_ranks.items()
        )
        return rows + sum(shape.module_shape(module)[1] for _, module in self.biased)


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeights:
    """All weights of an adapter as a device pool holds them: one flat tensor on the host, and its layout.

    `arena_offset_bytes` is where the blob begins in the host arena, a multiple of its alignment; None if
    it lies in memory of its own.
    """

    layout: AdapterLayout
    blob: torch.Tensor
    arena_offset_bytes: int | None = None

    @property
    def host_bytes(self) -> int:
        """What the blob takes of the host: whole pages of an arena; torch rounds pinned memory of its own
        up to a power of two."""
        if self.arena_offset_bytes is not None:
            return arena_bytes(self.blob.nbytes)
        return 1 << (self.blob.nbytes - 1).bit_length() if self.blob.is_pinned() else self.blob.nbytes


@dataclass(frozen=True, eq=False)
class AdapterWeights:
    """One adapter in host memory. `pairs` is never empty and runs in the order of the forward pass; where the
    adapter is packed they are views of `packed.blob`."""

    name: str
    pairs: Mapping[ModuleKey, LoraPair]
    packed: PackedWeights | None = None

    @cached_property
    def num_bytes(self) -> int:
        """Size of all rank rows and biases in the dtype of the run, with the gaps between them if packed."""
        if self.packed is not None:
            return self.packed.blob.nbytes
        return sum(pair.num_bytes for pair in self.pairs.values())

    @property
    def host_bytes(self) -> int:
        """What the adapter takes of the host's memory."""
        return self.num_bytes if self.packed is None else self.packed.host_bytes

    @property
    def lora_rank(self) -> int:
        """The largest rank of its modules."""
        return max(pair.lora_rank for pair in self.pairs.values())

    @property
    def outline(self) -> AdapterOutline:
        """The same adapter without its weights."""
        return AdapterOutline(
            self.name,
            {key: pair.lora_rank for key, pair in self.pairs.items()},
            frozenset(key for key, pair in self.pairs.items() if pair.bias is not None),
        )
