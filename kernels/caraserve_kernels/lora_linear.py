"""y += LoRA(x) for a ragged batch of tokens with adapters of mixed ranks, in plain PyTorch.

Semantics, for token t with adapter g(t), for each module m of a fused projection:

    y[t, columns(m)] += (x[t] @ a[g(t), m].T) @ b_rows[g(t), m] + bias[g(t), m]

`b_rows` is B transposed, with the adapter's scale folded in. Two forms, both unpadded (time follows the sum
of ranks, not the largest times the count):

- `add_lora_segment`: one adapter, many tokens; two matrix products.
- `add_lora_stacked`: many adapters, few tokens each; the rank rows of all adapters lie one below the other,
  every token is multiplied with all of them in one product, and a mask keeps the rows of its own adapter.
  It computes more than needed and launches far less: at one token an adapter, where time is launches and
  memory traffic, it reads each rank row once, which is the floor.

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

    Shapes: `b_rows` [rows, out]; `first_row` is where they begin in the stack's `a`; `bias` is
    [adapters, out] or None, with zero rows for adapters that have none.
    """

    first_row: int
    b_rows: Tensor
    bias: Tensor | None
    column: int


class LoraStack(NamedTuple):
    """The rank rows of several adapters for one fused projection of one layer.

    Shapes: `a` [rows, in], module by module and within a module adapter by adapter; `row_adapter` [rows]
    says which of the stacked adapters owns each row.
    """

    a: Tensor
    row_adapter: Tensor
    parts: tuple[StackedPart, ...]


def stack_parts(adapters: Sequence[Sequence[LoraPart]]) -> LoraStack | None:
    """Lay the parts of several adapters one below the other; None if no adapter has any part."""
    a_rows: list[Tensor] = []
    owners: list[int] = []
    stacked: list[StackedPart] = []
    for column in sorted({part.column for parts in adapters for part in parts}):
        members = [(i, part) for i, parts in enumerate(adapters) for part in parts if part.column == column]
        first_row = len(owners)
        for adapter, part in members:
            a_rows.append(part.a)
            owners += [adapter] * part.a.shape[0]
        b_rows = torch.cat([part.b_rows for _, part in members])
        stacked.append(StackedPart(first_row, b_rows, _stack_bias(members, len(adapters)), column))
    if not stacked:
        return None
    a = torch.cat(a_rows)
    return LoraStack(a, torch.tensor(owners, device=a.device), tuple(stacked))


def _stack_bias(members: Sequence[tuple[int, LoraPart]], num_adapters: int) -> Tensor | None:
    biases = [(adapter, part.bias) for adapter, part in members if part.bias is not None]
    if not biases:
        return None
    stacked = biases[0][1].new_zeros(num_adapters, biases[0][1].shape[0])
    for adapter, bias in biases:
        stacked[adapter] = bias
    return stacked


def add_lora_segment(x: Tensor, y: Tensor, parts: Sequence[LoraPart]) -> None:
    """Add one adapter to all tokens of `x` [tokens, in], in place in `y` [tokens, sum of out]."""
    for part in parts:
        columns = y[:, part.column : part.column + part.b_rows.shape[1]]
        columns.addmm_(torch.mm(x, part.a.t()), part.b_rows)
        if part.bias is not None:
            columns.add_(part.bias)


def add_lora_stacked(x: Tensor, y: Tensor, stack: LoraStack, row_mask: Tensor, one_hot: Tensor) -> None:
    """Add to each token of `x` the adapter that the masks choose, in place in `y`.

    Args:
        x: [tokens, in].
        y: [tokens, sum of out].
        stack: the adapters' rank rows.
        row_mask: [tokens, rows] of x's dtype, 1 where the row belongs to the token's adapter, else 0.
        one_hot: [tokens, adapters] of x's dtype, the token's adapter among the stacked ones.
    """
    shrunk = torch.mm(x, stack.a.t()).mul_(row_mask)
    for part in stack.parts:
        num_rows, width = part.b_rows.shape
        columns = y[:, part.column : part.column + width]
        columns.addmm_(shrunk[:, part.first_row : part.first_row + num_rows], part.b_rows)
        if part.bias is not None:
            columns.addmm_(one_hot, part.bias)


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
