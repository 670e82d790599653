"""The LoRA context of a step: which tokens belong to which resident adapter, and how they are computed.

Small adapters are stacked in groups that last as long as their members are resident; in each step a group
with few tokens of several members is computed together, everything else adapter by adapter.
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
    add_lora_segment,
    add_lora_stacked,
    stack_parts,
)

# A group's rank rows times the hidden size. A stack multiplies every token with every row of its group, which
# pays while that costs less than the launches it saves. Measured on the sample (hidden 256, 13 adapters, 32
# requests at once, one thread, three runs each), output tokens a second: 4,096: 770-861, 16,384: 832-948,
# 65,536: 746-915.
GROUP_ROW_ELEMENTS = 16_384
# Tokens times row elements up to which a group is computed as a stack.
STACK_MULTIPLY_ADDS = 16 * GROUP_ROW_ELEMENTS


class AdapterSegment(NamedTuple):
    """Neighbouring tokens `first_token … + num_tokens` of the flat batch that use one adapter."""

    adapter_slot: int
    first_token: int
    num_tokens: int


@dataclass(slots=True, eq=False)
class _Group:
    """Adapters that are stacked together, and their stacks, built when first needed."""

    members: dict[int, ResidentAdapter] = field(default_factory=dict)
    num_rows: int = 0
    stacks: dict[tuple[int, tuple[str, ...]], LoraStack | None] = field(default_factory=dict)
    layouts: dict[tuple[int, ...], Tensor] = field(default_factory=dict)

    def add(self, adapter_slot: int, adapter: ResidentAdapter) -> None:
        self.members[adapter_slot] = adapter
        self._change(adapter.lora_rank)

    def remove(self, adapter_slot: int) -> None:
        self._change(-self.members.pop(adapter_slot).lora_rank)

    def _change(self, num_rows: int) -> None:
        self.num_rows += num_rows
        self.stacks.clear()
        self.layouts.clear()

    def stack(self, layer: int, modules: tuple[str, ...]) -> LoraStack | None:
        """The rank rows of all members for one fused projection; None where no member changes it."""
        key = (layer, modules)
        if key not in self.stacks:
            stack = stack_parts([adapter.parts.get(key, ()) for adapter in self.members.values()])
            if stack is not None:
                # Layers usually agree on who owns which row; sharing the tensor lets them share masks.
                owners = self.layouts.setdefault(tuple(stack.row_adapter.tolist()), stack.row_adapter)
                stack = stack._replace(row_adapter=owners)
            self.stacks[key] = stack
        return self.stacks[key]


@dataclass(slots=True)
class _StackRun:
    """A group's stack applied to tokens `first … last` of this step; one mask per layout of rows."""

    group: _Group
    first: int
    last: int
    token_adapter: Tensor
    one_hot: Tensor
    row_masks: dict[int, Tensor] = field(default_factory=dict)

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        stack = self.group.stack(layer, modules)
        if stack is None:
            return
        mask = self.row_masks.get(id(stack.row_adapter))
        if mask is None:
            mask = (self.token_adapter[:, None] == stack.row_adapter[None, :]).to(x.dtype)
            self.row_masks[id(stack.row_adapter)] = mask
        add_lora_stacked(x[self.first : self.last], y[self.first : self.last], stack, mask, self.one_hot)


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

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """y += LoRA(x) for the tokens that have an adapter; see `LoraContext`."""
        for run in self._runs:
            run.add(layer, modules, x, y)


class LoraBatcher:
    """Makes the LoRA context of each step from the adapters in a device pool."""

    def __init__(self, shape: BaseShape, pool: DevicePool, dtype: torch.dtype, device: torch.device) -> None:
        self._pool = pool
        self._dtype = dtype
        self._device = device
        self._hidden_size = shape.hidden_size
        self._groups: list[_Group] = []
        self._group_of: dict[int, _Group] = {}

    def add(self, adapter_slot: int) -> None:
        """A slot was loaded: give it a group with room for its rows, or one of its own."""
        adapter = self._pool[adapter_slot]
        most_rows = GROUP_ROW_ELEMENTS // self._hidden_size
        fitting = (g for g in self._groups if g.num_rows + adapter.lora_rank <= most_rows)
        group = next(fitting, None)
        if group is None:
            group = _Group()
            self._groups.append(group)
        group.add(adapter_slot, adapter)
        self._group_of[adapter_slot] = group

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
        is_small = num_tokens * group.num_rows * self._hidden_size <= STACK_MULTIPLY_ADDS
        if len(segments) > 1 and is_small:
            return [self._stack_run(group, segments, num_tokens)]
        return [
            _SegmentRun(self._pool[slot], first, first + num_tokens) for slot, first, num_tokens in segments
        ]

    def _stack_run(self, group: _Group, segments: Sequence[AdapterSegment], num_tokens: int) -> _StackRun:
        place = {adapter_slot: i for i, adapter_slot in enumerate(group.members)}
        owners = [place[s.adapter_slot] for s in segments for _ in range(s.num_tokens)]
        token_adapter = torch.tensor(owners, device=self._device)
        one_hot = torch.nn.functional.one_hot(token_adapter, len(place)).to(self._dtype)
        first = segments[0].first_token
        return _StackRun(group, first, first + num_tokens, token_adapter, one_hot)
