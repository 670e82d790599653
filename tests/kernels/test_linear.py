"""The product with few tokens: dispatch here, values in Triton's interpreter, compiled for Hopper."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
import triton
from triton.backends.compiler import GPUTarget

from caraserve_kernels import linear as module
from caraserve_kernels import linear_kernels
from caraserve_kernels.linear import Tile, choose_tile, linear, linear_reference
from tests.kernels.interpreter import run_interpreted

# [in, out] of the products of Llama-2-7B, Llama-3-8B and Qwen2.5-7B, and of a toy.
SHAPES = [(4096, 12288), (4096, 4096), (4096, 22016), (11008, 4096), (4096, 32000), (4096, 6144)]
SHAPES += [(4096, 28672), (14336, 4096), (4096, 128256), (3584, 4608), (3584, 37888), (18944, 3584), (24, 10)]
HOPPER_SHARED_BYTES = 227 * 1024


def test_values_in_the_interpreter() -> None:
    run_interpreted("cases_linear.py")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
def test_on_the_cpu_it_is_torchs(biased: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(n, 40, generator=generator).to(dtype) for n in (3, 7))
    bias = torch.randn(7, generator=generator).to(dtype) if biased else None
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))


def test_reference_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(2)
    x, weight = (torch.randn(n, 40, generator=generator) for n in (3, 7))
    bias = torch.randn(7, generator=generator)
    torch.testing.assert_close(linear_reference(x, weight, bias), x @ weight.T + bias)


@pytest.mark.parametrize(("width_in", "width_out"), SHAPES)
@pytest.mark.parametrize("num_tokens", [1, 2, 16, 17, 64])
def test_chosen_tiles_are_sound(num_tokens: int, width_in: int, width_out: int) -> None:
    tile = choose_tile(num_tokens, width_in, width_out)
    assert triton.cdiv(width_out, tile.rows) <= module._MAX_ROW_BLOCKS
    assert tile.columns_ahead % tile.columns == 0
    # What each thread asks for ahead must be whole 16-byte units.
    assert tile.columns_ahead % (module.ahead_chunks(tile) * 8) == 0
    assert tile.num_splits == 1 or num_tokens > 1
    steps = triton.cdiv(triton.cdiv(width_in, tile.columns), tile.num_splits)
    assert (tile.num_splits - 1) * steps * tile.columns < width_in, "a program without work"


def compile_for_hopper(
    num_tokens: int, tile: Tile, biased: bool, even: bool, dtype: str, beside: bool = False
) -> triton.compiler.CompiledKernel:
    vector = num_tokens == 1
    kernel = linear_kernels.vector_kernel if vector else linear_kernels.tile_kernel
    constants: dict[str, object] = {
        "block_rows": tile.rows,
        "block_columns": tile.columns,
        "loop_stages": tile.num_stages,
        "even": even,
        "ahead": tile.columns_ahead,
        "ahead_chunks": module.ahead_chunks(tile),
        "overlap": True,
        "beside": beside,
    }
    if not biased:
        constants["bias_ptr"] = None
    if not vector:
        constants |= {"block_tokens": module.tokens_block(num_tokens), "num_splits": tile.num_splits}
        constants |= {} if tile.num_splits > 1 else {"parts_ptr": None, "arrivals_ptr": None}
    names = kernel.arg_names
    types = dict.fromkeys(names, "i32") | dict.fromkeys([n for n in names if n.endswith("_ptr")], f"*{dtype}")
    types |= {"parts_ptr": "*fp32", "arrivals_ptr": "*i32"}
    types |= dict.fromkeys(constants, "constexpr")
    # As the launcher finds them at real sizes: pointers, widths and strides are multiples of 16.
    aligned = [n for n in names if types[n] != "constexpr" and n != "num_tokens"]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    source = triton.compiler.ASTSource(kernel, {n: types[n] for n in names}, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": tile.num_warps})


@pytest.mark.parametrize("biased", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("even", [False, True], ids=["ragged", "even"])
@pytest.mark.parametrize("width_out", [4096, 22016])
@pytest.mark.parametrize("num_tokens", [1, 3, 16, 32, 64])
def test_compiles_for_hopper(num_tokens: int, width_out: int, even: bool, biased: bool) -> None:
    tile = choose_tile(num_tokens, 4096, width_out)
    compiled = compile_for_hopper(num_tokens, tile, biased, even, "bf16")
    assert compiled.metadata.shared <= HOPPER_SHARED_BYTES
    ptx = compiled.asm["ptx"]
    reads = [ptx.find(instruction) for instruction in ("ld.global", "cp.async.cg")]
    first_read = min(position for position in reads if position >= 0)
    assert 0 <= ptx.find("cp.async.bulk.prefetch.L2") < ptx.find("griddepcontrol.wait") < first_read
    # Reads of 16 bytes, or the product is not memory-bound.
    assert ("v4" in ptx) if num_tokens == 1 else ("cp.async.cg.shared.global" in ptx)
    assert num_tokens == 1 or "wgmma" in ptx


@pytest.mark.parametrize("num_tokens", [1, 16, 32])
@pytest.mark.parametrize("width_out", [4096, 22016])
def test_beside_another_kernel_it_waits_only_before_it_stores(num_tokens: int, width_out: int) -> None:
    tile = choose_tile(num_tokens, 4096, width_out)
    ptx = compile_for_hopper(num_tokens, tile, biased=False, even=True, dtype="bf16", beside=True).asm["ptx"]
    assert ptx.count("griddepcontrol.wait") == 1
    # A split product reads its parts again at the end: there the last multiplication tells.
    read = r"wgmma" if num_tokens > 1 else r"ld\.global[.\w:]*\.v4"
    last_read = max(match.start() for match in re.finditer(read, ptx))
    assert 0 < ptx.find("griddepcontrol.launch_dependents") < ptx.find("griddepcontrol.wait")
    assert ptx.find("griddepcontrol.wait") < ptx.find("st.global")
    assert 0 < last_read < ptx.find("griddepcontrol.wait")


def test_compiles_for_hopper_in_float16() -> None:
    for num_tokens in (1, 16):
        compile_for_hopper(
            num_tokens, choose_tile(num_tokens, 4096, 4096), biased=True, even=True, dtype="fp16"
        )
