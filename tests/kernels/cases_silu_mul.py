"""Triton's interpreter against the reference; run by test_silu_mul.py in a process of its own."""

from __future__ import annotations

import pytest
import torch

from caraserve_kernels.silu_mul import launch_silu_mul, silu_mul_reference

# Relative to the largest output: float32's exp, and float16's two roundings of 11 bits.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1.5e-3}


@pytest.mark.parametrize("width", [24, 100, 1024, 2500])
@pytest.mark.parametrize("num_tokens", [1, 3, 16])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_kernel(dtype: torch.dtype, num_tokens: int, width: int) -> None:
    generator = torch.Generator().manual_seed(width + num_tokens)
    gate_up = (4 * torch.randn(num_tokens, 2 * width, generator=generator)).to(dtype)
    out = torch.full((num_tokens, width), torch.nan, dtype=dtype)
    expected = silu_mul_reference(gate_up)
    launch_silu_mul(gate_up, out)
    assert float((out.float() - expected).abs().max() / expected.abs().max()) < TOLERANCE[dtype]


def test_large_values_neither_overflow_nor_turn_into_nan() -> None:
    gate_up = torch.tensor([[-1e4, -200.0, 0.0, 200.0, 1e4, 1.0, 1.0, 1.0, 1.0, 1.0]])
    out = torch.full((1, 5), torch.nan)
    launch_silu_mul(gate_up, out)
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0, 0.0, 200.0, 1e4]]))
