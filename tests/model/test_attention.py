"""Paged attention against a dense one in float64, sequence by sequence."""

from __future__ import annotations

import pytest
import torch

from caraserve_cli.core import BaseShape
from caraserve_cli.model.attention import AttentionSpan, KvCache, PagedSdpaAttention
from caraserve_cli.model.rope import Rotation

BLOCK_TOKENS = 4
NUM_BLOCKS = 64
# Float32 rounding over a softmax of up to 40 keys.
TOLERANCE = 1e-5


def make_shape(num_heads: int, num_kv_heads: int) -> BaseShape:
    return BaseShape(
        num_layers=2,
        hidden_size=8,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=8,
        intermediate_size=8,
        vocab_size=8,
    )


def dense_attention(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, start: int, window: int | None
) -> torch.Tensor:
    """[queries, heads * head_dim] for queries at positions start, start + 1, …"""
    share = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(share, 1).double(), values.repeat_interleave(share, 1).double()
    scores = torch.einsum("qhd,khd->hqk", query.double(), keys) / query.shape[2] ** 0.5
    position = torch.arange(start, start + query.shape[0])[:, None]
    key_position = torch.arange(keys.shape[0])[None, :]
    visible = key_position <= position
    if window is not None:
        visible &= position - key_position < window
    weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, values).flatten(1)


MIXES = {
    "one token": [(0, 1)],
    "decoding": [(3, 1), (9, 1), (39, 1), (4, 1)],
    "whole prompts": [(0, 5), (0, 17), (0, 1), (0, 4)],
    "chunks and decoding": [(8, 7), (20, 1), (0, 3), (13, 1), (30, 10)],
}


@pytest.mark.parametrize("windows", [(None, None), (3, None), (6, 6)], ids=str)
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES.keys())
def test_matches_dense_attention(
    mix: list[tuple[int, int]], num_heads: int, num_kv_heads: int, windows: tuple[int | None, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = make_shape(num_heads, num_kv_heads)
    cache = KvCache(shape, NUM_BLOCKS, BLOCK_TOKENS, torch.float32, torch.device("cpu"))
    # What other sequences left behind must never be read.
    cache.keys.fill_(1e4)
    cache.values.fill_(1e4)
    free_blocks = torch.randperm(NUM_BLOCKS, generator=generator).tolist()
    spans: list[AttentionSpan] = []
    first_token = 0
    for start, num_tokens in mix:
        num_blocks = -(-(start + num_tokens) // BLOCK_TOKENS)
        table = [free_blocks.pop() for _ in range(num_blocks)]
        spans.append(AttentionSpan(first_token, start, num_tokens, table))
        first_token += num_tokens

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    histories = [(random(s.start, num_kv_heads, 8), random(s.start, num_kv_heads, 8)) for s in spans]
    query = random(first_token, num_heads, 8)
    key, value = random(first_token, num_kv_heads, 8), random(first_token, num_kv_heads, 8)
    # Every position's angle is 0; rotations are tested with the decoder.
    unrotated = Rotation(torch.ones(first_token, 1, 8), torch.zeros(first_token, 1, 8))
    attention = PagedSdpaAttention(cache, spans, windows, unrotated, eps=1e-6)
    qkv = torch.cat([query, key, value], dim=1).flatten(1)
    for layer, window in enumerate(windows):
        for span, (keys, values) in zip(spans, histories, strict=True):
            for position in range(span.start):
                block, offset = span.block_table[position // BLOCK_TOKENS], position % BLOCK_TOKENS
                cache.keys[layer, :, block, offset] = keys[position]
                cache.values[layer, :, block, offset] = values[position]
        output = attention.attend(layer, qkv, None)
        for span, (keys, values) in zip(spans, histories, strict=True):
            own = slice(span.first_token, span.first_token + span.num_tokens)
            expected = dense_attention(
                query[own], torch.cat([keys, key[own]]), torch.cat([values, value[own]]), span.start, window
            )
            torch.testing.assert_close(output[own].double(), expected, atol=TOLERANCE, rtol=0)


def test_block_bytes_is_what_the_cache_takes() -> None:
    shape = make_shape(4, 2)
    cache = KvCache(shape, 5, BLOCK_TOKENS, torch.bfloat16, torch.device("cpu"))
    assert cache.keys.nbytes + cache.values.nbytes == 5 * KvCache.block_bytes(
        shape, BLOCK_TOKENS, torch.bfloat16
    )
