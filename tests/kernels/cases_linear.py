"""Triton's interpreter against the reference; run by test_linear.py in a process of its own."""

from __future__ import annotations

import pytest
import torch

from caraserve_kernels.linear import (
    Tile,
    arrival_counters,
    choose_tile,
    launch_linear,
    linear_reference,
)

# Relative to the largest output: the order of a float32 sum, and float16's one rounding of 11 bits.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3}


def check(
    tile: Tile, dtype: torch.dtype, num_tokens: int, width_in: int, width_out: int, biased: bool
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(num_tokens + width_in + width_out)
    # Rows of a wider tensor, whose other columns would spoil every sum.
    wide = torch.full((num_tokens, width_in + 8), torch.nan, dtype=dtype)
    x = wide[:, :width_in]
    x.copy_(torch.randn(num_tokens, width_in, generator=generator))
    weight = (torch.randn(width_out, width_in, generator=generator) / width_in**0.5).to(dtype)
    bias = torch.randn(width_out, generator=generator).to(dtype) if biased else None
    out = torch.full((num_tokens, width_out), torch.nan, dtype=dtype)
    launch_linear(x, weight, bias, out, tile)
    expected = linear_reference(x, weight, bias)
    assert float((out.float() - expected).abs().max() / expected.abs().max()) < TOLERANCE[dtype]
    return out


@pytest.mark.parametrize(("width_in", "width_out"), [(24, 10), (100, 130), (1024, 64), (2048, 40)])
@pytest.mark.parametrize("num_tokens", [1, 3, 16, 33])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_chosen_tile(dtype: torch.dtype, num_tokens: int, width_in: int, width_out: int) -> None:
    tile = choose_tile(num_tokens, width_in, width_out)
    check(tile, dtype, num_tokens, width_in, width_out, biased=width_out % 4 == 0)


@pytest.mark.parametrize("num_splits", [1, 2, 3, 8])
@pytest.mark.parametrize("width_in", [256, 300, 40])
@pytest.mark.parametrize("rows", [16, 64])
def test_splits_agree_bit_for_bit_and_leave_the_counters_at_zero(
    rows: int, width_in: int, num_splits: int
) -> None:
    """With 40 columns, and with 8 splits of 5 steps, some programs have nothing to add."""
    tile = Tile(rows, columns=64, num_warps=4, num_stages=2, num_splits=num_splits, columns_ahead=64)
    first = check(tile, torch.float32, 5, width_in, 70, biased=True)
    assert torch.equal(first, check(tile, torch.float32, 5, width_in, 70, biased=True))
    assert int(arrival_counters(torch.device("cpu")).count_nonzero()) == 0


@pytest.mark.parametrize("columns", [16, 64, 256])
@pytest.mark.parametrize("num_stages", [1, 3])
def test_vector_tiles(columns: int, num_stages: int) -> None:
    tile = Tile(8, columns, num_warps=4, num_stages=num_stages, num_splits=1, columns_ahead=0)
    check(tile, torch.float32, 1, 200, 33, biased=True)
