"""What a recipe of operators has measured: its cases, in words and sizes. Knows no torch and no files."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Of a step: a token a request, or prompts."""

    DECODE = "decode"
    PREFILL = "prefill"


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """What an operator may take at most: microseconds, times its floor; None where nothing is required."""

    at_most_us: float | None
    at_most: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductCase:
    """The products of a layer with so many tokens."""

    num_tokens: int
    limits: TimeLimits

    @property
    def name(self) -> str:
        return f"{self.num_tokens:,} tokens" if self.num_tokens > 1 else "1 token"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """Attention of a layer over contexts of the same length."""

    phase: Phase
    num_requests: int
    context_tokens: int
    limits: TimeLimits

    @property
    def name(self) -> str:
        return f"{self.phase}, {self.num_requests} x {self.context_tokens:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraCase:
    """LoRA of a step: neighbouring `num_tokens` / `num_adapters` tokens for each adapter."""

    name: str
    phase: Phase
    num_tokens: int
    num_adapters: int
    lora_ranks: tuple[int, ...]
    limits: TimeLimits

    @property
    def adapter_ranks(self) -> tuple[int, ...]:
        """The rank of each adapter."""
        return tuple(self.lora_ranks[index % len(self.lora_ranks)] for index in range(self.num_adapters))


@dataclass(frozen=True, slots=True, kw_only=True)
class FormsCase:
    """A decoding step of adapters with these ranks, unpadded (mbgmv) and padded (bgmv)."""

    name: str
    adapter_ranks: tuple[int, ...]
    bgmv_at_least: float | None
    mbgmv_at_most: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitCase:
    """Decoding steps of all `batch_sizes`, largest ranks and mixes of ranks, and a line through their times.

    Attributes:
        num_layers: None for those of the base.
    """

    batch_sizes: tuple[int, ...]
    largest_ranks: tuple[int, ...]
    num_layers: int | None
    r2_at_least: float | None

    @property
    def name(self) -> str:
        layers = {None: "", 1: ", 1 layer"}.get(self.num_layers, f", {self.num_layers} layers")
        return f"batches to {max(self.batch_sizes)}, ranks to {max(self.largest_ranks)}{layers}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCase:
    """An adapter's way from pinned memory to the device."""

    lora_rank: int
    layer_at_most: float | None

    @property
    def name(self) -> str:
        return f"rank {self.lora_rank}"
