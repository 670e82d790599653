"""The LoRA context of a step: which tokens belong to which resident adapter, and how they are computed.

Small adapters of similar rank are stacked in groups that last as long as their members are resident; in each
step a group with few tokens of several members is computed together, everything else adapter by adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from caraserve_cli.adapters.device_pool import DevicePool, ResidentAdapter
from caraserve_cli.core import BaseShape
from caraserve_kernels.lora_linear import (
    LoraStack,
    StackTokens,
    add_lora_segment,
    add_lora_stacked,
    stack_parts,
)

# The ranks up to which adapters are padded when they are stacked, and how large a stacked adapter's padded
# rows times the hidden size may be: small adapters, whose products take about as long as their launch. These
# and the bounds below are chosen, not measured. (One block-diagonal expand a group instead of one a module
# was tried: peft-long 1.54 to 1.58 s instead of 1.48 to 1.51, best of 9, two cores of a Xeon.)
RANK_CLASSES = (16, 64)
STACKABLE_ELEMENTS = 64 * 256
# Members of a group; a step that uses few of them computes them one by one.
MOST_MEMBERS = 16
# A group is computed as a stack while none of its members has more tokens, and padding makes it compute at
# most so many times the tokens that there are.
MOST_STACKED_TOKENS = 64
MAX_PADDING = 3.0


class AdapterSegment(NamedTuple):
    """Neighbouring tokens `first_token … + num_tokens` of the flat batch that use one adapter."""

    adapter_slot: int
    first_token: int
    num_tokens: int


@dataclass(slots=True, eq=False)
class _Group:
    """Adapters that are stacked together, and their stacks, built when first needed."""

    rank_class: int | None
    members: dict[int, ResidentAdapter] = field(default_factory=dict)
    stacks: dict[tuple[int, tuple[str, ...]], LoraStack | None] = field(default_factory=dict)

    def add(self, adapter_slot: int, adapter: ResidentAdapter) -> None:
        self.members[adapter_slot] = adapter
        self.stacks.clear()

    def remove(self, adapter_slot: int) -> None:
        del self.members[adapter_slot]
        self.stacks.clear()

    def stack(self, layer: int, modules: tuple[str, ...]) -> LoraStack | None:
        """The rank rows of all members for one fused projection; None where no member changes it."""
        key = (layer, modules)
        if key not in self.stacks:
            self.stacks[key] = stack_parts([adapter.parts.get(key, ()) for adapter in self.members.values()])
        return self.stacks[key]


@dataclass(slots=True)
class _StackRun:
    """A group's stack applied to tokens `first … last` of this step."""

    group: _Group
    first: int
    last: int
    tokens: StackTokens

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        stack = self.group.stack(layer, modules)
        if stack is not None:
            add_lora_stacked(x[self.first : self.last], y[self.first : self.last], stack, self.tokens)


@dataclass(slots=True)
class _SegmentRun:
    """One adapter applied to tokens `first … last` of this step."""

    adapter: ResidentAdapter
    first: int
    last: int

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        parts = self.adapter.parts.get((layer, modules))
        if parts:
            add_lora_segment(x[self.first : self.last], y[self.first : self.last], parts)


class LoraStep:
    """`LoraContext` of one step."""

    def __init__(self, runs: Sequence[_StackRun | _SegmentRun]) -> None:
        self._runs = runs

    def followed_by(self, other: LoraStep) -> LoraStep:
        """The context that adds what this one does, and what the other one does for other tokens."""
        return LoraStep([*self._runs, *other._runs])

    def begin(self, layer: int, modules: tuple[str, ...], x: Tensor) -> bool:
        """Nothing runs beside anything on a CPU whose cores all work on one product."""
        return False

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """y += LoRA(x) for the tokens that have an adapter; see `LoraContext`."""
        for run in self._runs:
            run.add(layer, modules, x, y)


class LoraBatcher:
    """Makes the LoRA context of each step from the adapters in a device pool."""

    def __init__(self, shape: BaseShape, pool: DevicePool, device: torch.device) -> None:
        self._pool = pool
        self._device = device
        self._hidden_size = shape.hidden_size
        self._groups: list[_Group] = []
        self._group_of: dict[int, _Group] = {}

    def add(self, adapter_slot: int) -> None:
        """A slot was loaded: give it a group of its rank class, or one of its own."""
        adapter = self._pool[adapter_slot]
        rank_class = self._rank_class(adapter.lora_rank)
        with_room = (
            group
            for group in self._groups
            if rank_class is not None and group.rank_class == rank_class and len(group.members) < MOST_MEMBERS
        )
        group = next(with_room, None)
        if group is None:
            group = _Group(rank_class)
            self._groups.append(group)
        group.add(adapter_slot, adapter)
        self._group_of[adapter_slot] = group

    def _rank_class(self, lora_rank: int) -> int | None:
        """The rank that an adapter is padded to when it is stacked; None where it never is."""
        rank_class = next((most for most in RANK_CLASSES if lora_rank <= most), None)
        is_small = rank_class is not None and rank_class * self._hidden_size <= STACKABLE_ELEMENTS
        return rank_class if is_small else None

    def remove(self, adapter_slot: int) -> None:
        """A slot is evicted."""
        group = self._group_of.pop(adapter_slot)
        group.remove(adapter_slot)
        if not group.members:
            self._groups.remove(group)

    def order(self, adapter_slot: int) -> tuple[int, int]:
        """Sort key that puts the tokens of a group side by side."""
        return (self._groups.index(self._group_of[adapter_slot]), adapter_slot)

    def begin(self, segments: Sequence[AdapterSegment]) -> LoraStep:
        """The context for tokens laid out as `segments`, ordered by `order`."""
        by_group: dict[int, list[AdapterSegment]] = {}
        for segment in segments:
            by_group.setdefault(id(self._group_of[segment.adapter_slot]), []).append(segment)
        return LoraStep([run for members in by_group.values() for run in self._runs(members)])

    def _runs(self, segments: Sequence[AdapterSegment]) -> Sequence[_StackRun | _SegmentRun]:
        """How one group's tokens are computed."""
        group = self._group_of[segments[0].adapter_slot]
        num_tokens = sum(segment.num_tokens for segment in segments)
        most_tokens = max(segment.num_tokens for segment in segments)
        is_dense = most_tokens * len(group.members) <= MAX_PADDING * num_tokens
        if len(segments) > 1 and most_tokens <= MOST_STACKED_TOKENS and is_dense:
            return [self._stack_run(group, segments, num_tokens, most_tokens)]
        return [
            _SegmentRun(self._pool[slot], first, first + num_tokens) for slot, first, num_tokens in segments
        ]

    def _stack_run(
        self, group: _Group, segments: Sequence[AdapterSegment], num_tokens: int, most_tokens: int
    ) -> _StackRun:
        first = segments[0].first_token
        place = {adapter_slot: i * most_tokens for i, adapter_slot in enumerate(group.members)}
        padded = [0] * (len(place) * most_tokens)
        places: list[int] = []
        for segment in segments:
            start = place[segment.adapter_slot]
            places += range(start, start + segment.num_tokens)
            padded[start : start + segment.num_tokens] = range(
                segment.first_token - first, segment.first_token - first + segment.num_tokens
            )
        tokens = StackTokens(
            torch.tensor(padded, device=self._device), torch.tensor(places, device=self._device)
        )
        return _StackRun(group, first, first + num_tokens, tokens)
