"""Attention over the paged cache: values in Triton's interpreter, what the host decides, dispatch, and parity
with torch's attention here; compiled for Hopper."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from caraserve_kernels import paged_decode as decode
from caraserve_kernels import paged_prefill as prefill
from caraserve_kernels.paged_attention import padded_head_dim
from caraserve_kernels.paged_decode import DecodeLaunch, DecodePlan, DecodeScratch, paged_decode, plan_decode
from caraserve_kernels.paged_decode_kernel import paged_decode_kernel
from caraserve_kernels.paged_prefill import (
    PrefillTiling,
    build_prefill_tiles,
    choose_prefill_tiling,
    paged_prefill,
)
from tests.kernels.interpreter import run_interpreted
from tests.kernels.test_rope_cache import compile_for_hopper

ARGUMENT_TYPES = {
    **dict.fromkeys(("block_tables", "context_lens", "cu_query", "tiles", "arrivals"), "*i32"),
    **dict.fromkeys(("partial", "stats"), "*fp32"),
    "scale_log2": "fp32",
}
TENSORS = ("query", "key_cache", "value_cache", "out")


def test_values_in_the_interpreter() -> None:
    run_interpreted("cases_paged_attention.py")


@pytest.mark.parametrize("window", [0, 5])
def test_on_the_cpu_it_is_torchs(window: int) -> None:
    """Sequences of one new token, of six late in their context, and of one in all."""
    num_queries, context_lens, tables = [1, 6, 1], [7, 10, 1], [[2, 0, 5], [5, 1, 4], [3, 3, 3]]
    keys, values = torch.randn(2, 2, 6, 4, 8).unbind()
    query = torch.randn(8, 4, 8)
    expected = torch.empty_like(query)
    for own, length, table in zip(query_slices(num_queries), context_lens, tables, strict=True):
        position = torch.arange(length - (own.stop - own.start), length)[:, None]
        key_position = torch.arange(length)[None, :]
        seen = (key_position <= position) & ((key_position > position - window) | (window == 0))
        key, value = (cache[:, table].flatten(1, 2)[:, :length] for cache in (keys, values))
        attended = scaled_dot_product_attention(
            query[own].transpose(0, 1)[None],
            key[None],
            value[None],
            attn_mask=seen,
            scale=0.3,
            enable_gqa=True,
        )
        expected[own] = attended[0].transpose(0, 1)

    block_tables, lens = (
        torch.tensor(tables, dtype=torch.int32),
        torch.tensor(context_lens, dtype=torch.int32),
    )
    cu_query = torch.tensor([0, 1, 7, 8], dtype=torch.int32)
    out = torch.full_like(query, torch.nan)
    tiles = torch.tensor(build_prefill_tiles(num_queries, context_lens, 8), dtype=torch.int32)
    paged_prefill(
        query,
        keys,
        values,
        block_tables,
        cu_query,
        lens,
        window,
        0.3,
        out,
        tiles,
        PrefillTiling(16, 16, 1, 1),
    )
    torch.testing.assert_close(out, expected)
    decoding = torch.tensor([0, 2])
    decoded = torch.full_like(query[:2], torch.nan)
    rows = cu_query[decoding]
    paged_decode(
        query[rows],
        keys,
        values,
        block_tables[decoding],
        lens[decoding],
        window,
        0.3,
        decoded,
        None,
        DecodePlan(DecodeLaunch(16, 1, 1), 2, 1),
    )
    torch.testing.assert_close(decoded, expected[rows])


def query_slices(num_queries: list[int]) -> list[slice]:
    ends = list(accumulate(num_queries))
    return [slice(end - count, end) for count, end in zip(num_queries, ends, strict=True)]


def plan(num_sequences: int, num_heads: int, num_kv_heads: int) -> DecodePlan:
    return plan_decode(num_sequences, num_heads, num_kv_heads, torch.bfloat16, 132)


class TestPlan:
    def test_one_sequence_fills_the_device(self) -> None:
        assert plan(1, 8, 8).num_whole == plan(1, 1, 1).num_whole == 0
        assert plan(1, 8, 8).num_splits * 8 >= 128
        assert 8 < plan(1, 1, 1).num_splits <= decode.MAX_SPLITS

    def test_waves_that_are_nearly_full_are_not_split(self) -> None:
        assert plan(256, 32, 32) == (decode.SINGLE_LAUNCH, 256, 1)
        assert plan(32, 32, 32) == (decode.SINGLE_LAUNCH, 32, 1)
        assert plan(66, 32, 8) == (decode.GROUPED_LAUNCH, 66, 1)
        assert plan(0, 8, 8).num_splits >= 1

    def test_a_last_wave_of_few_is_split(self) -> None:
        assert plan(68, 32, 32) == (decode.SINGLE_LAUNCH, 66, decode.LAST_WAVE_SPLITS)
        assert plan(82, 32, 32).num_whole == 66
        assert plan(83, 32, 32).num_whole == 83
        assert plan(34, 32, 8) == (decode.GROUPED_LAUNCH, 33, decode.LAST_WAVE_SPLITS)

    def test_in_float32_no_last_wave_is_split(self) -> None:
        for num_kv_heads in (32, 8):
            for count in range(1, 300):
                plan = plan_decode(count, 32, num_kv_heads, torch.float32, 132)
                assert plan.num_whole in (0, count)

    def test_more_sequences_never_more_splits_of_all(self) -> None:
        plans = [plan(count, 8, 8) for count in range(1, 300)]
        splits = [each.num_splits for each in plans if not each.num_whole]
        assert splits == sorted(splits, reverse=True)

    def test_scratch_of_another_launch_is_refused(self) -> None:
        scratch = DecodeScratch.allocate(4, 4, 2, 2, 16, torch.device("cpu"))
        query, caches = torch.zeros(4, 2, 16), torch.zeros(2, 1, 16, 16)
        tables, lens = torch.zeros(4, 1, dtype=torch.int32), torch.ones(4, dtype=torch.int32)
        two_each = DecodePlan(decode.SINGLE_LAUNCH, 0, 2)
        with pytest.raises(AssertionError):
            decode.launch_paged_decode(query, caches, caches, tables, lens, 0, 1.0, query, scratch, two_each)


class TestTiles:
    def test_cover_every_query_once(self) -> None:
        num_queries, context_lens = [1, 0, 37, 16, 17], [9, 4, 37, 90, 17]
        tiles = build_prefill_tiles(num_queries, context_lens, 16)
        covered = [
            (sequence, row)
            for sequence, first in tiles
            for row in range(first, min(first + 16, num_queries[sequence]))
        ]
        assert sorted(covered) == [(s, row) for s, count in enumerate(num_queries) for row in range(count)]

    def test_those_with_most_keys_come_first(self) -> None:
        assert build_prefill_tiles([20, 1, 16], [20, 100, 50], 16) == [(1, 0), (2, 0), (0, 16), (0, 0)]

    @pytest.mark.parametrize("group", [1, 4, 7, 8])
    def test_a_tile_holds_at_least_one_query(self, group: int) -> None:
        for dtype in (torch.float32, torch.bfloat16):
            for head_dim in (64, 128, 256):
                for longest in (1, 2, 16, 64, 2048):
                    tiling = choose_prefill_tiling(longest, group, head_dim, dtype)
                    assert tiling.query_tokens(group) >= 1


DECODE_LAUNCHES = [
    ("*bf16", 1, 128, decode.SINGLE_LAUNCH),
    ("*bf16", 1, 96, decode.SINGLE_LAUNCH),
    ("*bf16", 1, 128, decode.FEW_SINGLE_LAUNCH),
    ("*bf16", 4, 128, decode.GROUPED_LAUNCH),
    ("*fp32", 1, 128, decode.FEW_SINGLE_LAUNCH),
    ("*fp32", 4, 128, decode.FLOAT32_GROUPED_LAUNCH),
]


@pytest.mark.parametrize(("alone", "window"), [(False, 0), (True, 4096)])
@pytest.mark.parametrize(("dtype", "group", "head_dim", "launch"), DECODE_LAUNCHES)
def test_decode_compiles_for_hopper(
    dtype: str, group: int, head_dim: int, launch: DecodeLaunch, alone: bool, window: int
) -> None:
    ptx = compile_for_hopper(
        paged_decode_kernel,
        {**ARGUMENT_TYPES, **dict.fromkeys(TENSORS, dtype)},
        {
            "num_heads": 32, "num_kv_heads": 32 // group, "group_rows": 1 if group == 1 else 16,
            "head_dim": head_dim, "block_dim": padded_head_dim(head_dim), "block_tokens": 16,
            "block_keys": launch.block_keys, "window": window, "loop_stages": launch.num_stages,
            "max_splits": decode.MAX_SPLITS, "alone": alone, "overlap": True,
            "ahead_keys": 16 * launch.num_warps,
        },
        launch.num_warps,
        launch.num_stages,
    )  # fmt: skip
    assert ("atom.global.gpu.acq_rel" in ptx) is not alone
    before_wait = ptx[: ptx.index("griddepcontrol.wait")]
    assert "cp.async.bulk.prefetch.L2" in before_wait
    assert before_wait.count("st.global") == 0
    if dtype == "*bf16" and group > 1:
        assert "cp.async.cg.shared.global" in ptx  # keys and values arrive while others are multiplied


PREFILL_TILINGS = [
    ("*bf16", 1, 128, 0, prefill.TILING),
    ("*bf16", 4, 96, 4096, prefill.TILING),
    ("*bf16", 7, 128, 0, prefill.TILING),
    ("*bf16", 4, 128, 4096, prefill.SHORT_TILING),
    ("*bf16", 1, 256, 0, prefill.WIDE_TILING),
    ("*fp32", 4, 128, 0, prefill.FLOAT32_TILING),
]


@pytest.mark.parametrize(("dtype", "group", "head_dim", "window", "tiling"), PREFILL_TILINGS)
def test_prefill_compiles_for_hopper(
    dtype: str, group: int, head_dim: int, window: int, tiling: PrefillTiling
) -> None:
    ptx = compile_for_hopper(
        prefill._paged_prefill_kernel,
        {**ARGUMENT_TYPES, **dict.fromkeys(TENSORS, dtype)},
        {
            "group": group, "head_dim": head_dim, "block_dim": padded_head_dim(head_dim), "block_tokens": 16,
            "block_rows": tiling.block_rows, "block_keys": tiling.block_keys, "window": window,
        },
        tiling.num_warps,
        tiling.num_stages,
    )  # fmt: skip
    if dtype == "*bf16":
        assert "cp.async.cg.shared.global" in ptx
        assert ("wgmma" in ptx) is (tiling.block_rows >= 64)
