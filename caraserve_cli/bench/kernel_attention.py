"""Attention of one layer over the paged cache, launched as the engine launches it: decoding, one token a
request, and prefill of whole contexts. Layers with a sliding window are not measured.

Floor of decoding: keys and values over the copy bandwidth. Floor of prefill: the operations of the causal
half over the matrix product rate. Peers: see `attention_peers`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from caraserve_cli.bench.attention_peers import AttentionData, measure_attention_peers
from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_cases import AttentionCase, Phase
from caraserve_cli.bench.kernel_result import OperatorResult
from caraserve_cli.fleet.device_timer import SCRUB_BYTES
from caraserve_cli.fleet.kernel_place import largest_error
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_kernels.paged_decode import (
    DecodeScratch,
    paged_decode,
    paged_decode_reference,
    plan_decode,
)
from caraserve_kernels.paged_prefill import (
    build_prefill_tiles,
    choose_prefill_tiling,
    paged_prefill,
    paged_prefill_reference,
)

# Caches to rotate over on a GPU; one that is larger than the L2 cache by itself needs few of them.
_MOST_CACHES = 32
_BLOCK_TOKENS: int = ReplicaOptions(base="").kv_block_tokens
_NO_WINDOW = 0


@dataclass(frozen=True, slots=True, eq=False)
class _PagedRequests:
    """Requests of one context length, their blocks shuffled.

    Shapes: `keys` and `values` are [caches, kv heads, blocks, block_tokens, head_dim], each cache that of
    another layer. `block_tables` is [requests, blocks of each], `context_lens` [requests], `query` [tokens,
    heads, head_dim], `first_tokens` [requests + 1].
    """

    keys: Tensor
    values: Tensor
    block_tables: Tensor
    context_lens: Tensor
    query: Tensor
    first_tokens: Tensor

    @classmethod
    def make(cls, bench: KernelBench, case: AttentionCase) -> _PagedRequests:
        """Random ones."""
        shape, device = bench.shape, bench.device
        num_blocks = case.num_requests * -(-case.context_tokens // _BLOCK_TOKENS)
        cache_bytes = num_blocks * _BLOCK_TOKENS * _kv_token_bytes(bench)
        num_caches = min(_MOST_CACHES, SCRUB_BYTES // cache_bytes + 2) if device.type == "cuda" else 1
        cache_size = (num_caches, shape.num_kv_heads, num_blocks, _BLOCK_TOKENS, shape.head_dim)
        queries_each = 1 if case.phase is Phase.DECODE else case.context_tokens
        num_queries = case.num_requests * queries_each
        return cls(
            keys=bench.random(*cache_size),
            values=bench.random(*cache_size),
            block_tables=torch.randperm(num_blocks, device=device).int().view(case.num_requests, -1),
            context_lens=torch.full((case.num_requests,), case.context_tokens, device=device).int(),
            query=bench.random(num_queries, shape.num_heads, shape.head_dim),
            first_tokens=torch.arange(0, num_queries + 1, queries_each, device=device).int(),
        )


# Attention with one of the caches: its index, and where the result goes.
_Attend = Callable[[int, Tensor], None]


def measure_attention(bench: KernelBench, case: AttentionCase) -> OperatorResult:
    """Ours, then the peers, on data of the same sizes."""
    requests = _PagedRequests.make(bench, case)
    attend, attend_reference = (_decode if case.phase is Phase.DECODE else _prefill)(bench, case, requests)
    num_caches = requests.keys.shape[0]
    out = torch.full_like(requests.query, torch.nan)
    expected = torch.empty_like(requests.query, dtype=torch.float32)
    attend(num_caches - 1, out)
    attend_reference(num_caches - 1, expected)
    error = largest_error(out, expected)
    work = bench.timer.rotate([lambda cache=cache: attend(cache, out) for cache in range(num_caches)])  # type: ignore[misc]
    time_us = bench.timer.time_us({"ours": work})["ours"]
    data = AttentionData(case, requests.query, num_caches, _BLOCK_TOKENS)
    return OperatorResult(
        name=case.name,
        time_us=time_us,
        floor_us=_floor_us(bench, case),
        peers=measure_attention_peers(bench, data),
        error=error,
        wrong=bench.wrong(error),
        required=case.limits,
    )


def _decode(bench: KernelBench, case: AttentionCase, requests: _PagedRequests) -> tuple[_Attend, _Attend]:
    """Decoding, and its reference."""
    shape = bench.shape
    plan = plan_decode(case.num_requests, shape.num_heads, shape.num_kv_heads, bench.dtype, bench.num_sms)
    scratch = DecodeScratch.allocate(
        case.num_requests * plan.num_splits,
        case.num_requests,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        bench.device,
    )

    def given(cache: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, int, float]:
        tables, lens = requests.block_tables, requests.context_lens
        scale = shape.head_dim**-0.5
        return requests.query, requests.keys[cache], requests.values[cache], tables, lens, _NO_WINDOW, scale

    return (
        lambda cache, out: paged_decode(*given(cache), out, scratch, plan),
        lambda cache, out: paged_decode_reference(*given(cache), out),
    )


def _prefill(bench: KernelBench, case: AttentionCase, requests: _PagedRequests) -> tuple[_Attend, _Attend]:
    """Prefill, and its reference."""
    shape, num_queries = bench.shape, [case.context_tokens] * case.num_requests
    group = shape.num_heads // shape.num_kv_heads
    tiling = choose_prefill_tiling(case.context_tokens, group, shape.head_dim, bench.dtype)
    built = build_prefill_tiles(num_queries, num_queries, tiling.query_tokens(group))
    tiles = torch.tensor(built, dtype=torch.int32).to(bench.device)

    def given(cache: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, int, float]:
        tables, first, lens = requests.block_tables, requests.first_tokens, requests.context_lens
        keys, values = requests.keys[cache], requests.values[cache]
        return requests.query, keys, values, tables, first, lens, _NO_WINDOW, shape.head_dim**-0.5

    return (
        lambda cache, out: paged_prefill(*given(cache), out, tiles, tiling),
        lambda cache, out: paged_prefill_reference(*given(cache), out),
    )


def _floor_us(bench: KernelBench, case: AttentionCase) -> float:
    num_bytes = case.num_requests * case.context_tokens * _kv_token_bytes(bench)
    if case.phase is Phase.DECODE:
        return bench.floor_us(num_bytes)
    seen = case.num_requests * case.context_tokens * (case.context_tokens + 1) // 2
    return bench.floor_us(num_bytes, 4 * bench.shape.num_heads * bench.shape.head_dim * seen)


def _kv_token_bytes(bench: KernelBench) -> int:
    """Keys and values of one token in one layer."""
    return 2 * bench.shape.num_kv_heads * bench.shape.head_dim * bench.dtype.itemsize
