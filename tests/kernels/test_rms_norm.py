"""The residual's addition and norm: dispatch here, values in Triton's interpreter, compiled for Hopper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget

from caraserve_kernels import rms_norm
from caraserve_kernels.rms_norm import add_rms_norm, add_rms_norm_reference
from tests.kernels.interpreter import run_interpreted


def test_values_in_the_interpreter() -> None:
    run_interpreted("cases_rms_norm.py")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_the_cpu_it_is_torchs(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden, delta = torch.randn(2, 3, 40, generator=generator).to(dtype).unbind()
    weight = torch.randn(40, generator=generator).to(dtype)
    stream = hidden + delta
    changed = hidden.clone()
    assert torch.equal(add_rms_norm(changed, delta, weight, 1e-5), F.rms_norm(stream, (40,), weight, 1e-5))
    assert torch.equal(changed, stream)
    assert torch.equal(add_rms_norm(changed, None, weight, 1e-5), F.rms_norm(stream, (40,), weight, 1e-5))
    assert torch.equal(changed, stream)


def test_reference_is_torchs() -> None:
    generator = torch.Generator().manual_seed(2)
    hidden, delta = torch.randn(2, 3, 40, generator=generator).unbind()
    weight = torch.randn(40, generator=generator)
    stream, out = add_rms_norm_reference(hidden, delta, weight, 1e-5)
    assert torch.equal(stream, hidden + delta)
    torch.testing.assert_close(out, F.rms_norm(stream, (40,), weight, 1e-5))


@pytest.mark.parametrize("columns", [4096, 8192, 16384])
@pytest.mark.parametrize("with_delta", [False, True])
def test_compiles_for_hopper(with_delta: bool, columns: int) -> None:
    pointers = ["hidden_ptr", "weight_ptr", "out_ptr"] + ["delta_ptr"] * with_delta
    signature = dict.fromkeys(rms_norm._add_rms_norm_kernel.arg_names, "i32")
    signature |= dict.fromkeys(pointers, "*bf16") | {"eps": "fp32"}
    constants = {"block_columns": columns, "overlap": True}
    constants |= {} if with_delta else {"delta_ptr": None}
    source = triton.compiler.ASTSource(
        rms_norm._add_rms_norm_kernel, signature | dict.fromkeys(constants, "constexpr"), constants
    )
    options = {"num_warps": rms_norm.num_warps_for(columns)}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert "griddepcontrol.wait" in compiled.asm["ptx"]
