"""Decode and prefill attention in Triton's interpreter against the float32 reference.

Run by test_paged_attention.py in a process of its own, with TRITON_INTERPRET=1. Whatever must not be read is
NaN: slots past a context, blocks before a window, the block that unused table entries name, and scratch.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from caraserve_kernels.paged_decode import (
    DecodeLaunch,
    DecodePlan,
    DecodeScratch,
    launch_paged_decode,
    paged_decode_reference,
)
from caraserve_kernels.paged_prefill import (
    PrefillTiling,
    build_prefill_tiles,
    launch_paged_prefill,
    paged_prefill_reference,
)

# Largest absolute error accepted of outputs near 1: float32 rounding, and float16's 11 bits in the weights
# and the output.
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Each case has the same contents in every run: rounding, near the tolerance, depends on them."""
    torch.manual_seed(0)


CONTEXT_LENS = [17, 1, 0, 100, 15, 16]


@dataclass(frozen=True)
class Batch:
    """Sequences in a shuffled cache; `tables` may be read only where the window of a query reaches."""

    key_cache: Tensor
    value_cache: Tensor
    full_tables: Tensor
    tables: Tensor
    context_lens: Tensor


@dataclass(frozen=True)
class Shape:
    """What a case varies; `token_major` keeps the heads of a token together instead of a head's tokens."""

    group: int = 1
    num_kv_heads: int = 2
    head_dim: int = 32
    block_tokens: int = 16
    window: int = 0
    token_major: bool = False

    @property
    def num_heads(self) -> int:
        return self.group * self.num_kv_heads

    @property
    def scale(self) -> float:
        return 1.7 * self.head_dim**-0.5


def make_batch(shape: Shape, context_lens: list[int], num_queries: list[int], dtype: torch.dtype) -> Batch:
    num_blocks = [-(-length // shape.block_tokens) for length in context_lens]
    order = (torch.randperm(sum(num_blocks)) + 1).tolist()  # block 0 stays NaN
    size = (shape.num_kv_heads, len(order) + 1, shape.block_tokens, shape.head_dim)
    if shape.token_major:
        size = (size[1], size[2], size[0], size[3])
    key_cache, value_cache = (
        torch.full(size, torch.nan, dtype=dtype),
        torch.full(size, torch.nan, dtype=dtype),
    )
    if shape.token_major:
        key_cache, value_cache = key_cache.permute(2, 0, 1, 3), value_cache.permute(2, 0, 1, 3)
    full_tables = torch.zeros(len(context_lens), max(num_blocks) + 1, dtype=torch.int32)
    tables = full_tables.clone()
    for sequence, length in enumerate(context_lens):
        own = [order.pop() for _ in range(num_blocks[sequence])]
        for position in range(length):
            block, offset = own[position // shape.block_tokens], position % shape.block_tokens
            key_cache[:, block, offset] = torch.randn(shape.num_kv_heads, shape.head_dim).to(dtype)
            value_cache[:, block, offset] = torch.randn(shape.num_kv_heads, shape.head_dim).to(dtype)
        full_tables[sequence, : len(own)] = torch.tensor(own)
        tables[sequence] = full_tables[sequence]
        if shape.window:
            first = max(0, length - num_queries[sequence] + 1 - shape.window)
            tables[sequence, : first // shape.block_tokens] = 0
    return Batch(key_cache, value_cache, full_tables, tables, torch.tensor(context_lens, dtype=torch.int32))


def strided_like(num_tokens: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    """NaN [tokens, heads, head_dim] whose rows and heads are not packed."""
    memory = torch.full((num_tokens, shape.num_heads + 1, shape.head_dim + 8), torch.nan, dtype=dtype)
    return memory[:, : shape.num_heads, : shape.head_dim]


def make_query(num_tokens: int, shape: Shape, dtype: torch.dtype) -> Tensor:
    query = strided_like(num_tokens, shape, dtype)
    return query.copy_(torch.randn(query.shape))


def largest_error(actual: Tensor, expected: Tensor) -> float:
    error = (actual.float() - expected).abs().max()
    assert not error.isnan()
    return float(error)


DECODE_SHAPES = [
    Shape(),
    Shape(head_dim=16, block_tokens=4),
    Shape(head_dim=96, block_tokens=7, window=33, num_kv_heads=1),
    Shape(head_dim=64, window=10, token_major=True),
    Shape(head_dim=128, window=1, num_kv_heads=1),
    Shape(group=2, head_dim=16, block_tokens=7, token_major=True),
    Shape(group=7, head_dim=32, window=33),
    Shape(group=7, head_dim=96, num_kv_heads=1, block_tokens=4),
    Shape(group=2, head_dim=64, window=10),
    Shape(group=20, head_dim=128, num_kv_heads=1),
]


# The whole sequences, of six, and the parts of each other; one part where none has parts.
@pytest.mark.parametrize(
    ("dtype", "num_whole", "num_splits"),
    [(torch.float32, 6, 1), (torch.float32, 0, 5), (torch.float32, 3, 4), (torch.float16, 1, 2)],
)
@pytest.mark.parametrize("shape", DECODE_SHAPES, ids=str)
def test_decode(dtype: torch.dtype, shape: Shape, num_whole: int, num_splits: int) -> None:
    batch = make_batch(shape, CONTEXT_LENS, [1] * len(CONTEXT_LENS), dtype)
    num_sequences = len(CONTEXT_LENS)
    query = make_query(num_sequences, shape, dtype)
    query[CONTEXT_LENS.index(0)] = torch.nan
    expected = torch.full(query.shape, torch.nan)
    paged_decode_reference(
        query, batch.key_cache, batch.value_cache, batch.full_tables, batch.context_lens, shape.window,
        shape.scale, expected,
    )  # fmt: skip
    num_late = num_sequences - num_whole
    scratch = DecodeScratch.allocate(
        num_late * num_splits,
        num_late,
        shape.num_heads,
        shape.num_kv_heads,
        shape.head_dim,
        query.device,
    )
    outputs = []
    for _ in range(2 if num_splits == 2 else 1):  # the second finds the counters as the first left them
        scratch.partial.fill_(torch.nan)
        scratch.stats.fill_(torch.nan)
        out = strided_like(num_sequences, shape, dtype)
        launch_paged_decode(
            query, batch.key_cache, batch.value_cache, batch.tables, batch.context_lens, shape.window,
            shape.scale, out, scratch if num_splits > 1 else None,
            DecodePlan(DecodeLaunch(16, 4, 1), num_whole, num_splits),
        )  # fmt: skip
        assert not scratch.arrivals.any()
        outputs.append(out)
    assert torch.equal(outputs[0], outputs[-1])
    assert not outputs[0][CONTEXT_LENS.index(0)].any()
    assert largest_error(outputs[0], expected) < TOLERANCE[dtype]


# Sequences of (queries, context): decoding among chunks, whole prompts, chunks that start late, one of none.
SPANS = {
    "mixed": [(1, 40), (19, 19), (17, 60), (0, 5), (1, 1), (33, 34)],
    "short": [(3, 3), (2, 50), (1, 16)],
}
PREFILL_SHAPES = [
    (Shape(), 16),
    (Shape(head_dim=16, block_tokens=4, window=10), 32),
    (Shape(head_dim=96, block_tokens=7, num_kv_heads=1), 16),
    (Shape(head_dim=128, window=1, num_kv_heads=1), 16),
    (Shape(group=2, head_dim=64, token_major=True), 16),
    (Shape(group=2, head_dim=32, window=33, block_tokens=7), 64),
    (Shape(group=7, head_dim=16), 16),
    (Shape(group=7, head_dim=64, window=20, num_kv_heads=1), 32),
]


@pytest.mark.parametrize(("dtype", "spans"), [(torch.float32, "mixed"), (torch.float16, "short")])
@pytest.mark.parametrize(("shape", "block_rows"), PREFILL_SHAPES, ids=str)
def test_prefill(dtype: torch.dtype, shape: Shape, block_rows: int, spans: str) -> None:
    num_queries, context_lens = [span[0] for span in SPANS[spans]], [span[1] for span in SPANS[spans]]
    batch = make_batch(shape, context_lens, num_queries, dtype)
    num_tokens = sum(num_queries)
    cu_query = torch.tensor([0, *num_queries]).cumsum(0).to(torch.int32)
    query = make_query(num_tokens + 3, shape, dtype)
    expected = torch.full(query.shape, torch.nan)
    paged_prefill_reference(
        query, batch.key_cache, batch.value_cache, batch.full_tables, cu_query, batch.context_lens,
        shape.window, shape.scale, expected,
    )  # fmt: skip
    tiling = PrefillTiling(block_rows, 16, 4, 1)
    tiles = build_prefill_tiles(num_queries, context_lens, tiling.query_tokens(shape.group))
    out = strided_like(num_tokens + 3, shape, dtype)
    launch_paged_prefill(
        query, batch.key_cache, batch.value_cache, batch.tables, cu_query, batch.context_lens, shape.window,
        shape.scale, out, torch.tensor([*tiles, (-1, 0)], dtype=torch.int32), tiling,
    )  # fmt: skip
    assert out[num_tokens:].isnan().all()
    assert largest_error(out[:num_tokens], expected[:num_tokens]) < TOLERANCE[dtype]
