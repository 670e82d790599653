"""y += LoRA(x) for a ragged batch of tokens with adapters of mixed ranks, in plain PyTorch.

Semantics, for token t with adapter g(t), for each module m of a fused projection:

    y[t, columns(m)] += (x[t] @ a[g(t), m].T) @ b_rows[g(t), m] + bias[g(t), m]

`b_rows` is B transposed, with the adapter's scale folded in. Two forms:

- `add_lora_segment`: one adapter, many tokens; two matrix products a module, nothing padded.
- `add_lora_stacked`: several adapters of similar rank, few tokens each; batched products over the adapters,
  padded to the largest rank and the most tokens among them. It computes a little more and launches far less.

`add_lora_reference` is the float32 truth that both are checked against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LoraPart(NamedTuple):
    """One module's share of a fused projection for one adapter.

    Shapes: `a` [lora_rank, in], `b_rows` [lora_rank, out], `bias` [out] or None; `column` is where the
    module's output begins in y.
    """

    a: Tensor
    b_rows: Tensor
    bias: Tensor | None
    column: int


class StackedPart(NamedTuple):
    """One module's rank rows of all stacked adapters.

    Shapes: `b_rows` [adapters, rows, out], zero where an adapter has fewer rows or has not the module;
    `first_row` is where its rows begin in the stack's `a`; `bias` is [adapters, 1, out] or None.
    """

    first_row: int
    b_rows: Tensor
    bias: Tensor | None
    column: int


class LoraStack(NamedTuple):
    """The rank rows of several adapters for one fused projection of one layer.

    Shapes: `a` [adapters, rows, in], module by module, zero rows where an adapter has fewer.
    """

    a: Tensor
    parts: tuple[StackedPart, ...]


class StackTokens(NamedTuple):
    """Which tokens a stack's adapters get, the same number each.

    Shapes: `padded` [adapters * tokens each] are indices into the tokens of the run, any where an adapter has
    fewer; `places` [tokens of the run] says where each token stands in `padded`.
    """

    padded: Tensor
    places: Tensor


def stack_parts(adapters: Sequence[Sequence[LoraPart]]) -> LoraStack | None:
    """Lay the parts of several adapters side by side; None if no adapter has any part."""
    columns = sorted({part.column for parts in adapters for part in parts})
    if not columns:
        return None
    stacked: list[StackedPart] = []
    a_rows: list[Tensor] = []
    first_row = 0
    for column in columns:
        members = [(i, part) for i, parts in enumerate(adapters) for part in parts if part.column == column]
        a = _stack_rows([(i, part.a) for i, part in members], len(adapters))
        b_rows = _stack_rows([(i, part.b_rows) for i, part in members], len(adapters))
        biases = [(i, part.bias[None]) for i, part in members if part.bias is not None]
        bias = _stack_rows(biases, len(adapters)) if biases else None
        stacked.append(StackedPart(first_row, b_rows, bias, column))
        a_rows.append(a)
        first_row += a.shape[1]
    return LoraStack(torch.cat(a_rows, dim=1), tuple(stacked))


def _stack_rows(members: Sequence[tuple[int, Tensor]], num_adapters: int) -> Tensor:
    """[adapters, most rows, width], zero where a member has fewer rows or an adapter is no member."""
    most_rows = max(rows.shape[0] for _, rows in members)
    stacked = members[0][1].new_zeros(num_adapters, most_rows, members[0][1].shape[1])
    for adapter, rows in members:
        stacked[adapter, : rows.shape[0]] = rows
    return stacked


def add_lora_segment(x: Tensor, y: Tensor, parts: Sequence[LoraPart]) -> None:
    """Add one adapter to all tokens of `x` [tokens, in], in place in `y` [tokens, sum of out]."""
    for part in parts:
        columns = y[:, part.column : part.column + part.b_rows.shape[1]]
        columns.addmm_(torch.mm(x, part.a.t()), part.b_rows)
        if part.bias is not None:
            columns.add_(part.bias)


def add_lora_stacked(x: Tensor, y: Tensor, stack: LoraStack, tokens: StackTokens) -> None:
    """Add to each token of `x` its adapter of the stack, in place in `y`.

    Args:
        x: [tokens, in].
        y: [tokens, sum of out].
        stack: the adapters' rank rows.
        tokens: whose they are.
    """
    padded = x.index_select(0, tokens.padded).view(stack.a.shape[0], -1, x.shape[1])
    shrunk = torch.bmm(padded, stack.a.transpose(1, 2))
    for part in stack.parts:
        num_rows, width = part.b_rows.shape[1:]
        own = shrunk[:, :, part.first_row : part.first_row + num_rows]
        delta = torch.bmm(own, part.b_rows)
        if part.bias is not None:
            delta.add_(part.bias)
        y[:, part.column : part.column + width].add_(delta.view(-1, width).index_select(0, tokens.places))


def add_lora_reference(
    x: Tensor, y: Tensor, adapters: Sequence[Sequence[LoraPart]], token_adapter: Sequence[int]
) -> Tensor:
    """The semantics above, token by token in float32; returns a new tensor.

    `token_adapter` has one index into `adapters` per token, or -1 for a token without an adapter.
    """
    result = y.float().clone()
    for token, adapter in enumerate(token_adapter):
        for part in adapters[adapter] if adapter >= 0 else ():
            delta = part.a.float() @ x[token].float() @ part.b_rows.float()
            if part.bias is not None:
                delta = delta + part.bias.float()
            result[token, part.column : part.column + delta.shape[0]] += delta
    return result
