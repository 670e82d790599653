"""Query and key normalisation, rotary embedding, and the write into the paged KV cache, in one launch.

*Semantics*, for token t with `slot_mapping[t] = block * block_tokens + offset`, h a head of the fused
projection's output x[t] = qkv[t] viewed as [heads + 2 * kv heads, D]:

    n[h] = x[t, h] * rsqrt(mean(x[t, h]**2) + eps) * qk_norm[h]      (x[t, h] where qk_norm is None)
    r[h] = n[h] * cos[t] + roll(n[h], D / 2) * sin[t]
    query_out[t, h]                       = r[h]        for the heads of q
    key_cache[h - H, block, offset]       = r[h]        for the heads of k
    value_cache[h - H - KVH, block, offset] = x[t, h]   for the heads of v

A token whose slot is negative is padding: nothing of it is written.

Shapes and dtypes: `qkv` [T, (H + 2 * KVH) * D], rows contiguous; `cos`, `sin` [T, D], with the first half of
`sin` negated; `qk_norm` [H + KVH, D] or None; `slot_mapping` [T] int32 or int64; `key_cache`, `value_cache`
[KVH, blocks, block_tokens, D] of one layer, any strides with a contiguous last dimension; `query_out`
[T, H, D]. All floating tensors have one dtype. The mathematics is in float32 and rounds once, at the store.

Source: RoFormer (Su et al. 2021) for the embedding, PagedAttention (Kwon et al. 2023) for the cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from caraserve_kernels.linear import can_overlap

# Heads of one program and warps for them: 16 bytes a thread and a half head of 64 in bfloat16 are 4 heads a
# warp. Few tokens need many small programs, many tokens amortise cos and sin over more heads. H200, 32 + 32 +
# 32 heads of 128, (4, 1) / (16, 4), µs: 1 token 1.1 / 1.3, 64 tokens 2.4 / 2.9, 128 tokens 4.3 / 3.7, 2,048
# tokens 60 / 28 (floor 23).
FEW_TOKENS = 64
FEW_TOKENS_LAUNCH = (4, 1)
MANY_TOKENS_LAUNCH = (16, 4)


def rope_and_cache(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_norm: Tensor | None,
    eps: float,
    slot_mapping: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_heads: int,
    num_kv_heads: int,
    query_out: Tensor,
) -> None:
    """The operator described above, by the device of its tensors."""
    implementation = launch_rope_and_cache if qkv.is_cuda else rope_and_cache_reference
    implementation(
        qkv, cos, sin, qk_norm, eps, slot_mapping, key_cache, value_cache, num_heads, num_kv_heads, query_out
    )


def launch_rope_and_cache(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_norm: Tensor | None,
    eps: float,
    slot_mapping: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_heads: int,
    num_kv_heads: int,
    query_out: Tensor,
    launch: tuple[int, int] | None = None,
) -> None:
    """The Triton kernel; `launch` is (heads a program, warps a program), for measurements."""
    num_tokens = qkv.shape[0]
    head_dim = key_cache.shape[-1]
    all_heads = num_heads + 2 * num_kv_heads
    assert qkv.shape[1] == all_heads * head_dim
    assert qkv.stride(1) == cos.stride(1) == sin.stride(1) == query_out.stride(2) == 1
    assert key_cache.stride() == value_cache.stride()
    assert key_cache.stride(3) == 1
    assert qk_norm is None or qk_norm.is_contiguous()
    if num_tokens == 0:
        return
    overlap = can_overlap(qkv.device)
    block_heads, num_warps = launch or (FEW_TOKENS_LAUNCH if num_tokens <= FEW_TOKENS else MANY_TOKENS_LAUNCH)
    block_heads = min(block_heads, triton.next_power_of_2(all_heads))
    _rope_and_cache_kernel[(num_tokens, triton.cdiv(all_heads, block_heads))](
        qkv, cos, sin, qkv if qk_norm is None else qk_norm, eps, slot_mapping, key_cache, value_cache,
        query_out, qkv.stride(0), cos.stride(0), sin.stride(0), query_out.stride(0), query_out.stride(1),
        key_cache.stride(0), key_cache.stride(1), key_cache.stride(2),
        num_heads=num_heads, num_kv_heads=num_kv_heads, half_dim=head_dim // 2,
        block_half=triton.next_power_of_2(head_dim // 2), block_heads=block_heads,
        block_tokens=key_cache.shape[2], normed=qk_norm is not None, overlap=overlap,
        num_warps=num_warps, **({"launch_pdl": True} if overlap else {}),
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _load_halves(source, half_dim: tl.constexpr, mask):  # type: ignore[no-untyped-def]
    low = tl.load(source, mask=mask, other=0.0)
    high = tl.load(source + half_dim, mask=mask, other=0.0)
    return low.to(tl.float32), high.to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _store_halves(target, low, high, half_dim: tl.constexpr, mask):  # type: ignore[no-untyped-def]
    tl.store(target, low.to(target.dtype.element_ty), mask=mask)
    tl.store(target + half_dim, high.to(target.dtype.element_ty), mask=mask)


@triton.jit  # type: ignore[untyped-decorator]
def _rope_and_cache_kernel(  # type: ignore[no-untyped-def]
    qkv, cos, sin, qk_norm, eps, slot_mapping, key_cache, value_cache, query_out, stride_qkv, stride_cos,
    stride_sin, stride_query_token, stride_query_head, stride_cache_head, stride_cache_block,
    stride_cache_token,
    num_heads: tl.constexpr, num_kv_heads: tl.constexpr, half_dim: tl.constexpr, block_half: tl.constexpr,
    block_heads: tl.constexpr, block_tokens: tl.constexpr, normed: tl.constexpr, overlap: tl.constexpr,
):  # fmt: skip
    """One program: `block_heads` heads of one token, as two halves that rotate into each other."""
    num_qk_heads: tl.constexpr = num_heads + num_kv_heads
    if overlap:
        gdc_launch_dependents()
        gdc_wait()
    token = tl.program_id(0).to(tl.int64)
    first_head = tl.program_id(1) * block_heads
    # Padding rows are read too, so that no other load waits for this one.
    slot = tl.load(slot_mapping + token).to(tl.int64)
    heads = first_head + tl.arange(0, block_heads)[:, None]
    dims = tl.arange(0, block_half)[None, :]
    in_head = dims < half_dim
    source = qkv + token * stride_qkv + heads * (2 * half_dim) + dims
    low, high = _load_halves(source, half_dim, (heads < num_qk_heads + num_kv_heads) & in_head)
    if first_head < num_qk_heads:
        low_in, high_in = low, high
        rotated = heads < num_qk_heads
        if normed:
            squares = tl.sum(low * low + high * high, axis=1)
            inverse = tl.rsqrt(squares / (2 * half_dim) + eps)[:, None]
            weight = qk_norm + heads * (2 * half_dim) + dims
            low_weight, high_weight = _load_halves(weight, half_dim, rotated & in_head)
            low, high = low * inverse * low_weight, high * inverse * high_weight
        cos_low, cos_high = _load_halves(cos + token * stride_cos + dims, half_dim, in_head)
        sin_low, sin_high = _load_halves(sin + token * stride_sin + dims, half_dim, in_head)
        low_out = low * cos_low + high * sin_low
        high_out = high * cos_high + low * sin_high
        # The heads of v in a program that also holds heads of k stay as they are.
        low, high = tl.where(rotated, low_out, low_in), tl.where(rotated, high_out, high_in)

    if slot >= 0:
        target = query_out + token * stride_query_token + heads * stride_query_head + dims
        _store_halves(target, low, high, half_dim, in_head & (heads < num_heads))
        in_head_cache = (slot // block_tokens) * stride_cache_block + (
            slot % block_tokens
        ) * stride_cache_token
        kv_heads = (heads - num_heads).to(tl.int64)
        target = key_cache + kv_heads * stride_cache_head + in_head_cache + dims
        mask = in_head & (heads >= num_heads) & (heads < num_qk_heads)
        _store_halves(target, low, high, half_dim, mask)
        target = value_cache + (kv_heads - num_kv_heads) * stride_cache_head + in_head_cache + dims
        mask = in_head & (heads >= num_qk_heads) & (heads < num_qk_heads + num_kv_heads)
        _store_halves(target, low, high, half_dim, mask)


def rope_and_cache_reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    qk_norm: Tensor | None,
    eps: float,
    slot_mapping: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    num_heads: int,
    num_kv_heads: int,
    query_out: Tensor,
) -> None:
    """The semantics above in plain PyTorch, in float32; on any device, but it waits for the device."""
    head_dim, block_tokens = key_cache.shape[-1], key_cache.shape[2]
    tokens = (slot_mapping >= 0).nonzero().flatten()
    slots = slot_mapping[tokens].long()
    heads = qkv[tokens].view(-1, num_heads + 2 * num_kv_heads, head_dim)
    qk = heads[:, : num_heads + num_kv_heads].float()
    if qk_norm is not None:
        qk = qk * torch.rsqrt(qk.square().mean(-1, keepdim=True) + eps) * qk_norm.float()
    rolled = qk.roll(head_dim // 2, -1)
    qk = qk * cos[tokens].float()[:, None] + rolled * sin[tokens].float()[:, None]
    query_out[tokens] = qk[:, :num_heads].to(query_out.dtype)
    blocks, offsets = slots // block_tokens, slots % block_tokens
    key_cache[:, blocks, offsets] = qk[:, num_heads:].transpose(0, 1).to(key_cache.dtype)
    value_cache[:, blocks, offsets] = heads[:, num_heads + num_kv_heads :].transpose(0, 1)
