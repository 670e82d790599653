"""The gated activation: dispatch here, values in Triton's interpreter, compiled for Hopper."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget

from caraserve_kernels import silu_mul as module
from caraserve_kernels.silu_mul import silu_mul, silu_mul_reference
from tests.kernels.interpreter import run_interpreted


def test_values_in_the_interpreter() -> None:
    run_interpreted("cases_silu_mul.py")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_the_cpu_it_is_torchs(dtype: torch.dtype) -> None:
    gate_up = torch.randn(3, 80, generator=torch.Generator().manual_seed(1)).to(dtype)
    before = gate_up.clone()
    assert torch.equal(silu_mul(gate_up), F.silu(gate_up[:, :40]) * gate_up[:, 40:])
    assert torch.equal(gate_up, before)


def test_reference_is_torchs() -> None:
    gate_up = torch.randn(3, 80, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(silu_mul_reference(gate_up), F.silu(gate_up[:, :40]) * gate_up[:, 40:])


def test_compiles_for_hopper() -> None:
    signature = {"gate_up_ptr": "*bf16", "out_ptr": "*bf16", "width": "i32"}
    constants = {"block_columns": module._COLUMNS, "overlap": True}
    source = triton.compiler.ASTSource(
        module._silu_mul_kernel, signature | dict.fromkeys(constants, "constexpr"), constants
    )
    compiled = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": module._NUM_WARPS}
    )
    assert "griddepcontrol.wait" in compiled.asm["ptx"]
