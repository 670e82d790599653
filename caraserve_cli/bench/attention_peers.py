"""Others' attention on data of the same sizes: torch's `scaled_dot_product_attention` on contiguous keys and
values, for which nothing has to be looked up in block tables, and for decoding FlashInfer on a paged cache in
its own layout, planned beforehand.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor

from caraserve_cli.bench.comparison import Spread
from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_cases import AttentionCase, Phase
from caraserve_cli.bench.kernel_peers import is_installed, measure_peer
from caraserve_cli.bench.kernel_result import PeerTime

SDPA = "torch SDPA"
FLASHINFER = "FlashInfer"
# What FlashInfer's documentation recommends.
_WORKSPACE_BYTES = 128 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class AttentionData:
    """What the peers' data must be like; `query` is [tokens, heads, head_dim], request after request."""

    case: AttentionCase
    query: Tensor
    num_caches: int
    block_tokens: int


def measure_attention_peers(bench: KernelBench, data: AttentionData) -> tuple[PeerTime, ...]:
    """All that there are."""
    peers = [measure_peer(SDPA, lambda: _time_sdpa(bench, data))]
    if data.case.phase is Phase.DECODE and bench.device.type == "cuda" and is_installed("flashinfer"):
        peers.append(measure_peer(FLASHINFER, lambda: _time_flashinfer(bench, data)))
    return tuple(peers)


def _time_sdpa(bench: KernelBench, data: AttentionData) -> Spread:
    case, shape = data.case, bench.shape
    # [requests, heads, tokens of each, head_dim]
    query = data.query.view(case.num_requests, -1, shape.num_heads, shape.head_dim).transpose(1, 2)
    size = (data.num_caches, case.num_requests, shape.num_kv_heads, case.context_tokens, shape.head_dim)
    keys, values = bench.random(*size), bench.random(*size)

    def attend(cache: int) -> Tensor:
        return F.scaled_dot_product_attention(
            query,
            keys[cache],
            values[cache],
            is_causal=case.phase is Phase.PREFILL,
            enable_gqa=shape.num_heads != shape.num_kv_heads,
        )

    work = bench.timer.rotate([lambda cache=cache: attend(cache) for cache in range(data.num_caches)])  # type: ignore[misc]
    return bench.timer.time_us({SDPA: work})[SDPA]


def _time_flashinfer(bench: KernelBench, data: AttentionData) -> Spread:
    case, shape, device = data.case, bench.shape, bench.device
    blocks_each = -(-case.context_tokens // data.block_tokens)
    num_blocks = case.num_requests * blocks_each
    size = (data.num_caches, num_blocks, data.block_tokens, shape.num_kv_heads, shape.head_dim)
    keys, values = bench.random(*size), bench.random(*size)
    out = torch.empty_like(data.query)
    workspace = torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    # Not in any extra: whoever has it gets the comparison.
    wrapper = import_module("flashinfer").BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        torch.arange(0, num_blocks + 1, blocks_each, dtype=torch.int32),
        torch.randperm(num_blocks, device=device).int(),
        torch.full((case.num_requests,), (case.context_tokens - 1) % data.block_tokens + 1).int(),
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        data.block_tokens,
        q_data_type=bench.dtype,
        kv_data_type=bench.dtype,
    )

    def attend(cache: int) -> None:
        wrapper.run(data.query, (keys[cache], values[cache]), out=out)

    work = bench.timer.rotate([lambda cache=cache: attend(cache) for cache in range(data.num_caches)])  # type: ignore[misc]
    return bench.timer.time_us({FLASHINFER: work})[FLASHINFER]
