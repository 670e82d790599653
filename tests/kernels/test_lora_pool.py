"""LoRA on the pool: values in Triton's interpreter, dispatch on the CPU, compiled for Hopper."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from caraserve_kernels import lora_work
from caraserve_kernels.lora_layout import AdapterLayout, FusedGroup, empty_table
from caraserve_kernels.lora_linear import LoraPart, add_lora_reference
from caraserve_kernels.lora_pool import (
    CHUNK_CONFIG,
    DECODE_CONFIG,
    FEW_CONFIG,
    PREFILL_CONFIG,
    SHARED_CONFIG,
    ExpandConfig,
    LoraConfig,
    PooledLora,
    ShrinkConfig,
)
from caraserve_kernels.lora_pool_kernels import expand_kernel, shrink_kernel
from caraserve_kernels.lora_work import Padding, build_work
from tests.kernels.interpreter import run_interpreted
from tests.kernels.pool_blobs import write_blob

CONFIGS = {
    "decode": DECODE_CONFIG,
    "few": FEW_CONFIG,
    "shared": SHARED_CONFIG,
    "chunk": CHUNK_CONFIG,
    "prefill": PREFILL_CONFIG,
}
GROUP = FusedGroup(("q", "k"), 24, (16, 8))


def test_values_in_the_interpreter() -> None:
    run_interpreted("cases_lora_pool.py")


def make_lora(dtype: torch.dtype, padding: Padding | None = None) -> tuple[PooledLora, list[LoraPart]]:
    """One adapter in slot 1, on the second and third of four tokens."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(3, 24, generator=generator), torch.randn(3, 8, generator=generator)
    bias = torch.randn(8, generator=generator)
    key = (0, "k")
    layout = AdapterLayout.build([GROUP], 1, {key: 3}, {key}, padding and padding.padded_rank)
    pool = torch.full((64 + layout.num_elements,), torch.nan)
    write_blob(pool[64:], layout, {key: (a, b, bias)})
    table = empty_table(2, 1, 1)
    table[1] = layout.placed(64)
    rows = np.array([[0], layout.stacked_rows])
    work = np.zeros(100, np.int32)
    build_work(work, np.array([(1, 1, 2)]), rows, DECODE_CONFIG.tiling, padding)
    buffers = (pool.to(dtype), torch.from_numpy(table), torch.from_numpy(work), torch.empty(4, 4, 2, 8))
    lora = PooledLora((GROUP,), *buffers, DECODE_CONFIG, num_sms=1)
    return lora, [LoraPart(a.to(dtype), b.to(dtype), bias.to(dtype), 16)]


@pytest.mark.parametrize("padding", [None, Padding(8, 5)], ids=["dense", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_on_the_cpu_it_is_the_reference(dtype: torch.dtype, padding: Padding | None) -> None:
    lora, parts = make_lora(dtype, padding)
    x, y = torch.randn(4, 24).to(dtype), torch.randn(4, 24).to(dtype)
    expected = add_lora_reference(x, y, [parts], [-1, 0, 0, -1])
    before = y.clone()
    lora.add(0, 0, x, y)
    torch.testing.assert_close(y, expected.to(dtype))
    assert torch.equal(y[[0, 3]], before[[0, 3]])
    assert not torch.equal(y[1:3], before[1:3])


def test_tensor_cores_need_blocks_of_16() -> None:
    shrink, expand = ShrinkConfig(8, 64, 1, 4, 2, 1), ExpandConfig(64, 16, 4, 2, 1)
    LoraConfig(1, shrink, expand)
    with pytest.raises(ValueError, match="need 16"):
        LoraConfig(16, shrink, expand)


def test_scratch_must_have_room_for_the_splits() -> None:
    lora, _ = make_lora(torch.float32)
    with pytest.raises(ValueError, match="1 splits; 4 are used"):
        PooledLora(lora.groups, lora.pool, lora.table, lora.work, lora.h[:1], SHARED_CONFIG, 1)


def compile_for_hopper(
    kernel: Any, pointers: dict[str, str], integers: list[str], constants: dict[str, object], num_warps: int
) -> str:
    """The PTX of a kernel whose pointers and strides are multiples of 16, as torch's are."""
    signature = pointers | dict.fromkeys(integers, "i32") | dict.fromkeys(constants, "constexpr")
    names = list(kernel.arg_names)
    aligned = [*pointers, *(name for name in integers if name.endswith("_stride"))]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    return str(compiled.asm["ptx"])


def compile_shrink(config: LoraConfig, dtype: str, in_width: int) -> str:
    shrink = config.shrink
    constants = {
        "LIST": lora_work.FIRST_SHRINK_LIST,
        "SLOT_STRIDE": 2048,
        "H_SPLIT_STRIDE": 256 * 768,
        "H_STRIDE": 768,
        "H_MODULE_STRIDE": 256,
        "IN_WIDTH": in_width,
        "NUM_MODULES": 3,
        "BLOCK_TOKENS": config.block_tokens,
        "BLOCK_ROWS": shrink.block_rows,
        "BLOCK_K": shrink.block_k,
        "SPLIT_K": shrink.split_k,
        "STAGES": shrink.num_stages,
        "OVERLAP": True,
    }
    pointers = {"x_ptr": dtype, "h_ptr": "*fp32", "pool_ptr": dtype, "table_ptr": "*i64", "work_ptr": "*i32"}
    return compile_for_hopper(
        shrink_kernel, pointers, ["table_field", "x_stride"], constants, shrink.num_warps
    )


def compile_expand(config: LoraConfig, dtype: str, widths: tuple[int, int, int], width_align: int) -> str:
    expand = config.expand
    constants = {
        "SLOT_STRIDE": 2048,
        "H_SPLIT_STRIDE": 256 * 768,
        "H_STRIDE": 768,
        "H_MODULE_STRIDE": 256,
        "WIDTH0": widths[0],
        "WIDTH1": widths[1],
        "WIDTH2": widths[2],
        "WIDTH_ALIGN": width_align,
        "BLOCK_TOKENS": config.block_tokens,
        "BLOCK_COLS": expand.block_cols,
        "BLOCK_RANK": expand.block_rank,
        "SPLIT_K": config.shrink.split_k,
        "STAGES": expand.num_stages,
        "OVERLAP": True,
    }
    pointers = {"y_ptr": dtype, "h_ptr": "*fp32", "pool_ptr": dtype, "table_ptr": "*i64", "work_ptr": "*i32"}
    return compile_for_hopper(
        expand_kernel, pointers, ["table_field", "y_stride"], constants, expand.num_warps
    )


# 16 bytes at once: into registers, or asynchronously into shared memory.
WIDE_READ = re.compile(r"ld\.global\.v4\.b32|cp\.async\.cg\.shared\.global [^;]*, 0x10")


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
class TestCompilesForHopper:
    def test_shrink(self, config: LoraConfig, dtype: str) -> None:
        ptx = compile_shrink(config, dtype, 4096)
        # A product that runs beside it reads x without waiting, once it may start.
        assert 0 < ptx.find("griddepcontrol.wait") < ptx.find("griddepcontrol.launch_dependents")
        assert len(WIDE_READ.findall(ptx)) >= 2, "x and A must be read 16 bytes at a time"
        assert ("mma" in ptx) == (config.block_tokens > 1 and dtype == "*bf16")

    def test_expand(self, config: LoraConfig, dtype: str) -> None:
        ptx = compile_expand(config, dtype, (4096, 1024, 1024), 64)
        assert "griddepcontrol.wait" in ptx
        assert WIDE_READ.search(ptx), "B must be read 16 bytes at a time"
        assert ("mma" in ptx) == (config.block_tokens > 1 and dtype == "*bf16")


def test_compiles_for_widths_that_divide_by_nothing() -> None:
    assert compile_shrink(PREFILL_CONFIG, "*bf16", 50)
    assert compile_expand(PREFILL_CONFIG, "*bf16", (50, 31, 0), 1)
