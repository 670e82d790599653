"""Attention of one new token per sequence over the paged KV cache.

*Semantics*, for sequence s, head h and its kv head g = h // (H / KVH), over the keys
j = max(0, len[s] - window) … len[s] - 1 (from 0 where window is 0):

    out[s, h] = sum_j softmax_j(scale * query[s, h] . K[g, j]) V[g, j]

and 0 where len[s] is 0: a padding row, of which nothing is read.

Shapes and dtypes: `query`, `out` [S, H, D]; `key_cache`, `value_cache` [KVH, blocks, block_tokens, D]; all of
one dtype. `block_tables` [S, blocks of the longest] int32; `context_lens` [S] int32, the new token included,
whose key and value are already in the cache. `DecodeScratch` holds float32 partial results.

The keys of a sequence are those of one program a kv head, or split among several (`DecodePlan`): launch
arguments, so that a captured launch serves every length. Each split leaves a partial maximum, sum and
weighted values; the program that arrives last merges them in the order of the splits, whatever the order of
arrival.

Source: FlashDecoding (Dao et al. 2023) for the splits, PagedAttention (Kwon et al. 2023) for the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from caraserve_kernels.linear import can_overlap
from caraserve_kernels.paged_attention import (
    LOG2_E,
    attend_sequence_reference,
    check_cache,
    padded_head_dim,
)
from caraserve_kernels.paged_decode_kernel import paged_decode_kernel

# Splits of a sequence at most: what the merging program reads at once.
MAX_SPLITS = 32
# Programs that a launch should have for each multiprocessor, and splits that are worth their merging. H200,
# one sequence of 512 tokens, 32 kv heads, 4 / 8 / 16 / 32 splits: 8.4 / 7.7 / 11.5 / 16.9 µs; 8 kv heads, 8 /
# 16 / 32 splits: 7.4 / 10.2 / 14.0 µs, and with 2,048 tokens 12.7 / 12.8 / 15.3 µs.
PROGRAMS_PER_SM = 2
_WORTHWHILE_SPLITS = 16
# tl.dot takes no fewer rows; the heads of a group are padded to them.
_MIN_DOT_ROWS = 16


@dataclass(frozen=True, slots=True)
class DecodeLaunch:
    """How the kernel is launched: keys a tile, warps a program, and tiles in flight; and how many programs a
    Hopper's multiprocessor then holds at once, 0 where no wave of them is counted."""

    block_keys: int
    num_warps: int
    num_stages: int
    programs_per_sm: int = 0


# H200, bfloat16, 32 heads of 128, µs by (keys, warps, stages). 64 sequences of 148 / 64 of 192 / 32 of 512 /
# 256 of 192 / 32 of 4,096 tokens: (16, 1, 3): 46 / 54 / 69 / 197 / 512, (16, 2, 3): 47 / 55 / 70 / 200 / 619,
# (64, 4, 1): 55 / 60 / 74 / 212 / 526, (32, 2, 2): 55 / 64 / 78 / 234 / 646; floors 36 / 47 / 63 / 188 / 502.
# 1 sequence of 512 / 8 of 512 tokens: (64, 4, 1): 8.3 / 25, (16, 1, 3): 9.9 / 46; 8 of them are 2 programs a
# multiprocessor, 32 are 8. With 8 kv heads, 32 of 512 / 256 of 192 / 32 of 4,096: (64, 4, 3): 26 / 56 / 169,
# (128, 8, 3): 21 / 74 / 128; floors 16 / 47 / 125.
SINGLE_LAUNCH = DecodeLaunch(block_keys=16, num_warps=1, num_stages=3, programs_per_sm=8)
FEW_SINGLE_LAUNCH = DecodeLaunch(block_keys=64, num_warps=4, num_stages=1)
# Programs a multiprocessor from which there are not few. Chosen between the 2 and the 8 above.
MANY_PROGRAMS_PER_SM = 6
GROUPED_LAUNCH = DecodeLaunch(block_keys=64, num_warps=4, num_stages=3, programs_per_sm=2)
FLOAT32_GROUPED_LAUNCH = DecodeLaunch(block_keys=32, num_warps=8, num_stages=1)
# Programs run in waves, as many at once as the device holds, and whole sequences in a last wave of few leave
# the memory idle: up to half a wave is split. H200, 32 kv heads, waves of 33 sequences of 200 tokens, µs,
# whole / the last wave in 2 / 4 / 8 splits: 34 sequences 44 / 39 / 36 / 35, 40: 50 / 42 / 40 / 43, 48: 51 /
# 46 / 49 / 54, 68: 72 / 65 / 62 / -, 80: 77 / 72 / 74 / 78, 104: 98 / 92 / 90 / 92, 88, two thirds of a
# wave: 79 / 81 / 83 / 90. 8 kv heads, 500 tokens: 36: 28 / 25 / 26 / 27, 68: 49 / 45 / 42 / 41. Graphs are
# padded: most launches for 80 have fewer, of which 4 splits are the best.
LAST_WAVE_SPLITS = 4


class DecodePlan(NamedTuple):
    """How a batch is computed: each of the first `num_whole` sequences by a program a kv head, each of the
    others by `num_splits`."""

    launch: DecodeLaunch
    num_whole: int
    num_splits: int


@dataclass(frozen=True, slots=True)
class DecodeScratch:
    """Memory of the splits, for any launch that it is large enough for; launches that may overlap need their
    own.

    Shapes: `partial` [sequences * heads * splits * padded head_dim] and `stats` [sequences * heads * splits
    * 2] (maximum and sum) float32; `arrivals` [sequences * kv heads] int32, zero between launches.
    """

    partial: Tensor
    stats: Tensor
    arrivals: Tensor

    @classmethod
    def allocate(
        cls,
        max_rows: int,
        max_sequences: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        device: torch.device,
    ) -> DecodeScratch:
        """For launches of at most `max_sequences`, whose sequences * splits is at most `max_rows`."""
        float_rows = max_rows * num_heads
        return cls(
            torch.empty(float_rows * padded_head_dim(head_dim), dtype=torch.float32, device=device),
            torch.empty(float_rows * 2, dtype=torch.float32, device=device),
            torch.zeros(max_sequences * num_kv_heads, dtype=torch.int32, device=device),
        )


def plan_decode(
    num_sequences: int, num_heads: int, num_kv_heads: int, dtype: torch.dtype, num_sms: int
) -> DecodePlan:
    """The plan that fills the device, by what is known when a launch is captured: not the lengths."""
    num_programs = num_sequences * num_kv_heads
    launch = _choose_launch(num_programs, num_heads // num_kv_heads, dtype, num_sms)
    num_splits = min(_WORTHWHILE_SPLITS, PROGRAMS_PER_SM * num_sms // max(1, num_programs))
    if num_splits > 1:
        return DecodePlan(launch, 0, num_splits)
    wave = launch.programs_per_sm * num_sms // num_kv_heads
    num_late = num_sequences % wave if 0 < wave < num_sequences else 0
    if num_late > wave // 2:
        num_late = 0
    return DecodePlan(launch, num_sequences - num_late, LAST_WAVE_SPLITS if num_late else 1)


def paged_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    window: int,
    scale: float,
    out: Tensor,
    scratch: DecodeScratch | None,
    plan: DecodePlan,
) -> None:
    """The operator described above, by the device of its tensors; `scratch` where sequences are split."""
    if query.is_cuda:
        launch_paged_decode(
            query, key_cache, value_cache, block_tables, context_lens, window, scale, out, scratch, plan
        )
    else:
        paged_decode_reference(query, key_cache, value_cache, block_tables, context_lens, window, scale, out)


def launch_paged_decode(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    window: int,
    scale: float,
    out: Tensor,
    scratch: DecodeScratch | None,
    plan: DecodePlan,
) -> None:
    """The Triton kernel."""
    num_sequences, num_heads, head_dim = query.shape
    num_kv_heads, _, block_tokens, _ = key_cache.shape
    group = num_heads // num_kv_heads
    check_cache(query, key_cache, value_cache, block_tables)
    assert out.stride(2) == 1
    launch, num_late = plan.launch, num_sequences - plan.num_whole
    assert num_late >= 0
    assert 1 <= plan.num_splits <= MAX_SPLITS
    if scratch is not None:
        num_rows = num_late * num_heads * plan.num_splits
        assert scratch.stats.numel() >= num_rows * 2
        assert scratch.partial.numel() >= num_rows * padded_head_dim(head_dim)
        assert scratch.arrivals.numel() >= num_late * num_kv_heads
    assert scratch is not None or plan.num_splits == 1
    if num_sequences == 0:
        return
    overlap = can_overlap(query.device)
    paged_decode_kernel[(num_kv_heads, plan.num_whole + num_late * plan.num_splits)](
        query, key_cache, value_cache, block_tables, context_lens, out, scratch.partial if scratch else out,
        scratch.stats if scratch else out, scratch.arrivals if scratch else context_lens, scale * LOG2_E,
        plan.num_whole, plan.num_splits, query.stride(0), query.stride(1), out.stride(0), out.stride(1),
        key_cache.stride(0), key_cache.stride(1), key_cache.stride(2), block_tables.stride(0),
        num_heads=num_heads, num_kv_heads=num_kv_heads,
        group_rows=1 if group == 1 else max(_MIN_DOT_ROWS, triton.next_power_of_2(group)), head_dim=head_dim,
        block_dim=padded_head_dim(head_dim), block_tokens=block_tokens, block_keys=launch.block_keys,
        window=window, loop_stages=launch.num_stages, max_splits=MAX_SPLITS, alone=plan.num_splits == 1,
        overlap=overlap, ahead_keys=_ahead_keys(key_cache, launch), num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        **({"launch_pdl": True} if overlap else {}),
    )  # fmt: skip


def _ahead_keys(cache: Tensor, launch: DecodeLaunch) -> int:
    """Keys and values asked for before the queries are there: one request a thread, in units of 16 bytes."""
    row_bytes = cache.shape[3] * cache.element_size()
    return 16 * launch.num_warps if row_bytes % 16 == 0 and cache.data_ptr() % 16 == 0 else 0


def _choose_launch(num_programs: int, group: int, dtype: torch.dtype, num_sms: int) -> DecodeLaunch:
    if group > 1:
        return FLOAT32_GROUPED_LAUNCH if dtype == torch.float32 else GROUPED_LAUNCH
    is_many = num_programs >= MANY_PROGRAMS_PER_SM * num_sms
    return SINGLE_LAUNCH if is_many and dtype != torch.float32 else FEW_SINGLE_LAUNCH


def paged_decode_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    window: int,
    scale: float,
    out: Tensor,
) -> None:
    """The semantics above in plain PyTorch, in float32; on any device, but it waits for the device."""
    for sequence, context_len in enumerate(context_lens.tolist()):
        if context_len == 0:
            out[sequence] = 0
            continue
        one_query = query[sequence : sequence + 1]
        attended = attend_sequence_reference(
            one_query, key_cache, value_cache, block_tables[sequence], context_len, window, scale
        )
        out[sequence] = attended[0].to(out.dtype)
