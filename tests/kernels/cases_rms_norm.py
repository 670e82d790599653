"""Triton's interpreter against the reference; run by test_rms_norm.py in a process of its own."""

from __future__ import annotations

import pytest
import torch

from caraserve_kernels.rms_norm import add_rms_norm_reference, launch_add_rms_norm

EPS = 1e-5
# Relative to the largest output: the order of a float32 sum, and float16's two roundings of 11 bits.
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1.5e-3}


@pytest.mark.parametrize("hidden_size", [24, 100, 1000, 2048])
@pytest.mark.parametrize("num_tokens", [1, 3, 5])
@pytest.mark.parametrize("with_delta", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_kernel(dtype: torch.dtype, with_delta: bool, num_tokens: int, hidden_size: int) -> None:
    generator = torch.Generator().manual_seed(hidden_size + num_tokens)
    # Rows of a wider tensor: the stride is not the width, and what lies between must stay as it is.
    wide = torch.randn(num_tokens, hidden_size + 8, generator=generator).to(dtype)
    before = wide.clone()
    hidden = wide[:, :hidden_size]
    delta = torch.randn(num_tokens, hidden_size, generator=generator).to(dtype) if with_delta else None
    weight = torch.randn(hidden_size, generator=generator).to(dtype)
    out = torch.full((num_tokens, hidden_size), torch.nan, dtype=dtype)
    stream, expected = add_rms_norm_reference(hidden.clone(), delta, weight, EPS)

    launch_add_rms_norm(hidden, delta, weight, EPS, out)

    assert torch.equal(hidden, stream)
    assert torch.equal(wide[:, hidden_size:], before[:, hidden_size:])
    assert float((out.float() - expected).abs().max() / expected.abs().max()) < TOLERANCE[dtype]
