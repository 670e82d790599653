"""Every form against the float32 reference, over rank mixes, popularity mixes and odd sizes."""

from __future__ import annotations

import pytest
import torch

from caraserve_kernels.lora_linear import (
    LoraPart,
    StackTokens,
    add_lora_reference,
    add_lora_segment,
    add_lora_stacked,
    stack_parts,
)

WIDTHS = (24, 8, 8)  # unequal, as q, k and v are under grouped-query attention
INPUT_WIDTH = 20
# Largest error accepted, relative to the largest output: float32 rounding, and bfloat16's 8 bits of mantissa
# through two products.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 3e-2}

POPULARITY = {
    "distinct": [0, 1, 2, 3],
    "same": [2, 2, 2, 2, 2],
    "skewed": [0, 0, 0, 0, 0, 0, 1, 3],
}
RANKS = {
    "equal": [(8, 8, 8)] * 4,
    "mixed": [(1, 1, 1), (3, 5, 7), (64, 64, 64), (16, 2, 33)],
    "some modules only": [(4, 0, 0), (0, 9, 0), (0, 0, 1), (2, 0, 6)],
}


def make_adapter(
    generator: torch.Generator, lora_ranks: tuple[int, ...], dtype: torch.dtype, biased: bool
) -> list[LoraPart]:
    parts, column = [], 0
    for lora_rank, width in zip(lora_ranks, WIDTHS, strict=True):
        if lora_rank:
            a = torch.randn(lora_rank, INPUT_WIDTH, generator=generator) / INPUT_WIDTH**0.5
            b_rows = torch.randn(lora_rank, width, generator=generator) / lora_rank**0.5
            bias = torch.randn(width, generator=generator).to(dtype) if biased else None
            parts.append(LoraPart(a.to(dtype), b_rows.to(dtype), bias, column))
        column += width
    return parts


def stack_tokens(token_adapter: list[int], num_adapters: int) -> StackTokens:
    """Each adapter's tokens padded, with the first token, to as many as the most popular one has."""
    each = max(token_adapter.count(adapter) for adapter in range(num_adapters))
    padded = [0] * (num_adapters * each)
    places = []
    for token, adapter in enumerate(token_adapter):
        places.append(adapter * each + token_adapter[:token].count(adapter))
        padded[places[-1]] = token
    return StackTokens(torch.tensor(padded), torch.tensor(places))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.float() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("lora_ranks", RANKS.values(), ids=RANKS.keys())
@pytest.mark.parametrize("token_adapter", POPULARITY.values(), ids=POPULARITY.keys())
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
class TestAgainstReference:
    def test_stacked(
        self,
        dtype: torch.dtype,
        token_adapter: list[int],
        lora_ranks: list[tuple[int, ...]],
        biased: bool,
    ) -> None:
        generator = torch.Generator().manual_seed(1)
        # One adapter in three has a bias, so that biased and plain ones share a stack.
        adapters = [
            make_adapter(generator, r, dtype, biased and i % 3 == 0) for i, r in enumerate(lora_ranks)
        ]
        x = torch.randn(len(token_adapter), INPUT_WIDTH, generator=generator).to(dtype)
        y = torch.randn(len(token_adapter), sum(WIDTHS), generator=generator).to(dtype)
        expected = add_lora_reference(x, y, adapters, token_adapter)
        stack = stack_parts(adapters)
        assert stack is not None
        tokens = stack_tokens(token_adapter, len(adapters))
        add_lora_stacked(x, y, stack, tokens)
        assert relative_error(y, expected) < TOLERANCE[dtype]

    def test_segments(
        self,
        dtype: torch.dtype,
        token_adapter: list[int],
        lora_ranks: list[tuple[int, ...]],
        biased: bool,
    ) -> None:
        generator = torch.Generator().manual_seed(2)
        adapters = [make_adapter(generator, r, dtype, biased) for r in lora_ranks]
        x = torch.randn(len(token_adapter), INPUT_WIDTH, generator=generator).to(dtype)
        y = torch.randn(len(token_adapter), sum(WIDTHS), generator=generator).to(dtype)
        expected = add_lora_reference(x, y, adapters, token_adapter)
        for adapter in sorted(set(token_adapter)):
            first = token_adapter.index(adapter)
            last = first + token_adapter.count(adapter)
            add_lora_segment(x[first:last], y[first:last], adapters[adapter])
        assert relative_error(y, expected) < TOLERANCE[dtype]


def test_reference_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(3)
    adapter = make_adapter(generator, (2, 0, 3), torch.float32, biased=True)
    x, y = torch.randn(2, INPUT_WIDTH, generator=generator), torch.zeros(2, sum(WIDTHS))
    result = add_lora_reference(x, y, [adapter], [0, -1])
    assert torch.equal(result[1], y[1]), "a token without an adapter must not change"
    for part in adapter:
        width = part.b_rows.shape[1]
        assert part.bias is not None
        torch.testing.assert_close(
            result[0, part.column : part.column + width], part.b_rows.T @ (part.a @ x[0]) + part.bias
        )
    assert torch.equal(result[0, WIDTHS[0] : WIDTHS[0] + WIDTHS[1]], torch.zeros(WIDTHS[1]))


def test_adapters_without_parts_make_no_stack() -> None:
    assert stack_parts([[], []]) is None
