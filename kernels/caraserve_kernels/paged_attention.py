"""What decode and prefill attention over the paged KV cache share: addresses, and the float32 truth.

One layer's keys and values are [KVH, blocks, block_tokens, D] with any strides and a contiguous last
dimension. Position p of a sequence lies in block `block_table[p // block_tokens]` at offset
`p % block_tokens`; tiles find the block of each of their keys, so that block_tokens may be any number.

Source: PagedAttention (Kwon et al. 2023).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)

# The score of what is masked. Finite, so that no difference of two of them is NaN; a row that has seen only
# masked keys is wiped by its first real score, since exp2 of the difference is 0.
UNSEEN = tl.constexpr(-1.0e30)


@triton.jit  # type: ignore[untyped-decorator]
def cache_rows(  # type: ignore[no-untyped-def]
    keys, blocks, stride_block, stride_token, block_dim: tl.constexpr, block_tokens: tl.constexpr
):
    """Offsets [keys, block_dim] of keys' rows within a head, `blocks` being the cache block of each key."""
    rows = blocks.to(tl.int64) * stride_block + (keys % block_tokens) * stride_token
    return rows[:, None] + tl.arange(0, block_dim)[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def row_mask(seen, head_dim: tl.constexpr, block_dim: tl.constexpr):  # type: ignore[no-untyped-def]
    """[rows, block_dim] from `seen` [rows]; compares dimensions only where the head is padded."""
    mask = seen[:, None]
    if head_dim != block_dim:
        mask = mask & (tl.arange(0, block_dim) < head_dim)[None, :]
    return mask


def padded_head_dim(head_dim: int) -> int:
    """The power of two that a tile holds a head in; tl.dot takes no less than 16."""
    return int(max(16, triton.next_power_of_2(head_dim)))


def check_cache(query: Tensor, key_cache: Tensor, value_cache: Tensor, block_tables: Tensor) -> None:
    """What the kernels take for granted of their arguments' layout."""
    assert key_cache.shape == value_cache.shape
    assert key_cache.stride() == value_cache.stride()
    assert query.stride(-1) == key_cache.stride(-1) == block_tables.stride(-1) == 1
    assert query.shape[-1] == key_cache.shape[-1]
    assert query.shape[1] % key_cache.shape[0] == 0
    assert query.dtype == key_cache.dtype == value_cache.dtype


def attend_sequence_reference(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    context_len: int,
    window: int,
    scale: float,
) -> Tensor:
    """One sequence's causal attention in float32: `query` [n, H, D] are the last of `context_len` positions.

    A query at position p sees keys p - window + 1 … p, or 0 … p where `window` is 0. Returns [n, H, D] in
    float32.
    """
    num_kv_heads, _, block_tokens, head_dim = key_cache.shape
    num_queries, num_heads = query.shape[:2]
    blocks = block_table[: -(-context_len // block_tokens)].long()
    keys, values = (
        cache[:, blocks].reshape(num_kv_heads, -1, head_dim)[:, :context_len].float()
        for cache in (key_cache, value_cache)
    )
    share = num_heads // num_kv_heads  # query heads that read the same key head
    keys, values = keys.repeat_interleave(share, dim=0), values.repeat_interleave(share, dim=0)
    scores = torch.einsum("nhd,hkd->hnk", query.float(), keys) * scale
    position = torch.arange(context_len - num_queries, context_len, device=query.device)[:, None]
    key = torch.arange(context_len, device=query.device)[None, :]
    unseen = key > position
    if window:
        unseen |= key <= position - window
    scores.masked_fill_(unseen, -torch.inf)
    return torch.einsum("hnk,hkd->nhd", scores.softmax(dim=-1), values)
