"""Rotation and cache write in Triton's interpreter against the float32 reference.

Run by test_rope_cache.py in a process of its own, with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import pytest
import torch

from caraserve_kernels.rope_cache import launch_rope_and_cache, rope_and_cache_reference

# Largest relative error accepted: float32 rounding in another order, and float16's 11 bits at the store.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 1e-3}
EPS = 1e-6
BLOCK_TOKENS = 7
NUM_BLOCKS = 4
SLOTS = [9, 0, -1, 27, 13, -5, 14]

# Heads, kv heads, head_dim, (heads a program, warps); some programs hold queries, keys and values together.
SHAPES = [
    (4, 4, 16, (4, 1)),
    (7, 1, 32, (4, 1)),
    (14, 2, 64, (16, 4)),
    (2, 2, 96, (4, 1)),
    (3, 1, 128, (2, 4)),
    (1, 1, 16, None),
]


@pytest.mark.parametrize("token_major", [False, True], ids=["head-major", "token-major"])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "normed"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "slot_dtype"), [(torch.float32, torch.int64), (torch.float16, torch.int32)], ids=str
)
def test_rope_and_cache(
    dtype: torch.dtype,
    shape: tuple[int, int, int, tuple[int, int] | None],
    slot_dtype: torch.dtype,
    normed: bool,
    token_major: bool,
) -> None:
    num_heads, num_kv_heads, head_dim, launch = shape
    num_tokens = len(SLOTS)
    qkv = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    angles = torch.randn(num_tokens, head_dim // 2) * 5
    cos = torch.cat((angles.cos(), angles.cos()), dim=-1).to(dtype)
    sin = torch.cat((-angles.sin(), angles.sin()), dim=-1).to(dtype)
    qk_norm = (torch.randn(num_heads + num_kv_heads, head_dim) + 1).to(dtype) if normed else None
    slots = torch.tensor(SLOTS, dtype=slot_dtype)
    results = []
    for function in (rope_and_cache_reference, launch_rope_and_cache):
        caches = [
            torch.full((num_kv_heads, NUM_BLOCKS, BLOCK_TOKENS, head_dim), torch.nan, dtype=dtype)
            for _ in range(2)
        ]
        if token_major:
            caches = [cache.permute(1, 2, 0, 3).contiguous().permute(2, 0, 1, 3) for cache in caches]
        memory = torch.full((num_tokens, num_heads + 1, head_dim + 8), torch.nan, dtype=dtype)
        query = memory[:, :num_heads, :head_dim]
        given = (qkv, cos, sin, qk_norm, EPS, slots, *caches, num_heads, num_kv_heads, query)
        if function is launch_rope_and_cache:
            launch_rope_and_cache(*given, launch=launch)
        else:
            rope_and_cache_reference(*given)
        results.append((query, *caches))
        # The right places are written, and no others.
        written = torch.zeros(NUM_BLOCKS * BLOCK_TOKENS, dtype=torch.bool)
        written[[slot for slot in SLOTS if slot >= 0]] = True
        for cache in caches:
            assert torch.equal(
                ~cache.isnan(), written.view(1, NUM_BLOCKS, BLOCK_TOKENS, 1).expand(cache.shape)
            )
        assert torch.equal(~memory.isnan().all(-1).all(-1), slots >= 0)
        assert memory[:, num_heads:].isnan().all()
        assert memory[:, :, head_dim:].isnan().all()
    expected_parts, actual_parts = results
    assert torch.equal(expected_parts[2].nan_to_num(), actual_parts[2].nan_to_num())  # values are copied
    for expected, actual in zip(expected_parts[:2], actual_parts[:2], strict=True):
        error = (actual.float() - expected.float()).nan_to_num().abs().max()
        assert error < TOLERANCE[dtype] * expected.float().nan_to_num().abs().max()
