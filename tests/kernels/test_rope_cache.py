"""Rotation and cache write: values in Triton's interpreter, dispatch and parity here, compiled for Hopper."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget

from caraserve_kernels import rope_cache
from caraserve_kernels.rope_cache import rope_and_cache
from tests.kernels.interpreter import run_interpreted

# What one program may take of a Hopper multiprocessor's shared memory.
MAX_SHARED_BYTES = 227 * 1024


def compile_for_hopper(
    kernel: triton.JITFunction,
    types: Mapping[str, str],
    constants: Mapping[str, int | bool],
    num_warps: int,
    num_stages: int = 1,
) -> str:
    """PTX of `kernel`; arguments that are in neither mapping are int32, and all are multiples of 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name] not in ("constexpr", "fp32")
    }
    compiled = triton.compile(
        triton.compiler.ASTSource(kernel, signature, dict(constants), aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    assert compiled.metadata.shared <= MAX_SHARED_BYTES
    return str(compiled.asm["ptx"])


def test_values_in_the_interpreter() -> None:
    run_interpreted("cases_rope_cache.py")


@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
def test_on_the_cpu_it_is_torchs(normed: bool) -> None:
    num_tokens, num_heads, num_kv_heads, head_dim, block_tokens = 5, 4, 2, 16, 4
    qkv = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
    angles = torch.randn(num_tokens, head_dim // 2)
    cos = torch.cat((angles.cos(), angles.cos()), -1)
    sin = torch.cat((-angles.sin(), angles.sin()), -1)
    qk_norm = torch.randn(num_heads + num_kv_heads, head_dim) if normed else None
    heads = qkv.view(num_tokens, -1, head_dim)
    qk = heads[:, : num_heads + num_kv_heads]
    if qk_norm is not None:
        qk = F.rms_norm(qk, qk.shape[-1:], None, 1e-6) * qk_norm
    qk = torch.addcmul(qk * cos[:, None], qk.roll(head_dim // 2, -1), sin[:, None])

    keys, values = torch.full((2, num_kv_heads, 3, block_tokens, head_dim), torch.nan)
    query = torch.full((num_tokens, num_heads, head_dim), torch.nan)
    slots = torch.tensor([5, 0, 11, 2, 7])
    rope_and_cache(qkv, cos, sin, qk_norm, 1e-6, slots, keys, values, num_heads, num_kv_heads, query)
    torch.testing.assert_close(query, qk[:, :num_heads])
    torch.testing.assert_close(keys.flatten(1, 2)[:, slots].transpose(0, 1), qk[:, num_heads:])
    assert torch.equal(values.flatten(1, 2)[:, slots].transpose(0, 1), heads[:, num_heads + num_kv_heads :])


@pytest.mark.parametrize("launch", [rope_cache.FEW_TOKENS_LAUNCH, rope_cache.MANY_TOKENS_LAUNCH], ids=str)
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(32, 32), (28, 4)])
def test_compiles_for_hopper(
    num_heads: int, num_kv_heads: int, normed: bool, launch: tuple[int, int]
) -> None:
    pointers = ("qkv", "cos", "sin", "qk_norm", "key_cache", "value_cache", "query_out")
    ptx = compile_for_hopper(
        rope_cache._rope_and_cache_kernel,
        {**dict.fromkeys(pointers, "*bf16"), "slot_mapping": "*i64", "eps": "fp32"},
        {
            "num_heads": num_heads, "num_kv_heads": num_kv_heads, "half_dim": 64, "block_half": 64,
            "block_heads": launch[0], "block_tokens": 16, "normed": normed, "overlap": True,
        },
        num_warps=launch[1],
    )  # fmt: skip
    assert "griddepcontrol.wait" in ptx
    assert "st.global.v4" in ptx  # 16 bytes a thread
