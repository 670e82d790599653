"""Attention over the paged KV cache in plain PyTorch: right on any device, and the CPU's way.

A step's sequences are computed in groups of similar length, padded to the longest of their group: all
decoding sequences of similar context are one call. Knows the ragged batch, not where it came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from caraserve_cli.core import BaseShape
from caraserve_cli.model.rope import Rotation

# A group is closed when padding would make it compute more than this many times the (query, key) pairs
# that its sequences need; below the floor padding is taken
# to be cheaper than another call. Both are chosen, not measured.
MAX_PADDING = 1.5
PAIRS_WORTH_A_CALL = 4096


class AttentionSpan(NamedTuple):
    """One sequence in a step: tokens `first_token … + num_tokens` of the flat batch, at positions
    `start … + num_tokens` of the sequence, whose cache lies in `block_table`."""

    first_token: int
    start: int
    num_tokens: int
    block_table: Sequence[int]

    @property
    def num_keys(self) -> int:
        return self.start + self.num_tokens


class KvCache:
    """Keys and values of all layers in blocks of `block_tokens` tokens.

    Shapes: `keys` and `values` are [layers, kv heads, blocks, block_tokens, head_dim]. A head's tokens lie
    together, so that what is gathered by blocks is multiplied without another copy.
    """

    def __init__(
        self, shape: BaseShape, num_blocks: int, block_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        size = (shape.num_layers, shape.num_kv_heads, num_blocks, block_tokens, shape.head_dim)
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)
        self.block_tokens = block_tokens
        self._scratch = torch.empty(2, 0, dtype=dtype, device=device)

    def head_blocks(self, blocks: Tensor) -> Tensor:
        """`blocks` [n] of every head, as `gather` takes them: [kv heads * n]."""
        num_heads, num_blocks = self.keys.shape[1:3]
        heads = torch.arange(num_heads, device=blocks.device) * num_blocks
        return (heads[:, None] + blocks).flatten()

    def gather(self, layer: int, head_blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `head_blocks`, each [kv heads * n, block_tokens * head_dim]; good until the next
        call.

        Into memory that is kept: what the allocator gives back to the system between two calls costs a page
        fault for every 4 KB. Heads and blocks are one dimension, the first, since only along that one torch
        gathers with all threads. Measured, 86 sequences of 80 keys, two threads, one layer's attention: 1,020
        to 2,817 us without both, 655 us with them.
        """
        row = self.keys.shape[3] * self.keys.shape[4]
        num_elements = head_blocks.shape[0] * row
        if self._scratch.shape[1] < num_elements:
            self._scratch = self._scratch.new_empty(2, num_elements)
        keys, values = (
            torch.index_select(
                cache[layer].view(-1, row), 0, head_blocks, out=scratch[:num_elements].view(-1, row)
            )
            for cache, scratch in zip((self.keys, self.values), self._scratch, strict=True)
        )
        return keys, values

    @staticmethod
    def block_bytes(shape: BaseShape, block_tokens: int, dtype: torch.dtype) -> int:
        """Bytes that one block takes over all layers."""
        return 2 * shape.num_layers * block_tokens * shape.num_kv_heads * shape.head_dim * dtype.itemsize


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences computed in one call, padded to `num_queries` new tokens and whole blocks of keys.

    Shapes: `query_index` [sequences * queries] into the flat batch; `head_blocks` [kv heads * sequences *
    blocks], as `KvCache.head_blocks` makes them; `masks` by window, each [sequences, queries, keys], 0 where
    a query sees a key and -inf elsewhere; `tokens` and `rows` pair the flat tokens with their rows among the
    padded queries.
    """

    num_sequences: int
    num_queries: int
    query_index: Tensor
    head_blocks: Tensor
    masks: dict[int | None, Tensor]
    tokens: Tensor
    rows: Tensor


class PagedSdpaAttention:
    """`AttentionContext` of one step.

    Args:
        cache: where keys and values live; attended positions are already in it or written by this step.
        spans: the step's sequences, in the order of the flat batch, which together they cover.
        windows: the sliding window of each layer, None where a layer sees everything.
        rotation: of each token of the flat batch.
        eps: of the heads' norm, where the base has one.
    """

    def __init__(
        self,
        cache: KvCache,
        spans: Sequence[AttentionSpan],
        windows: Sequence[int | None],
        rotation: Rotation,
        eps: float,
    ) -> None:
        self._cache = cache
        self._windows = windows
        self._rotation = rotation
        self._eps = eps
        self._num_kv_heads, self._head_dim = cache.keys.shape[1], cache.keys.shape[4]
        self._device = cache.keys.device
        self._slot_mapping = self._tensor(
            [
                span.block_table[position // cache.block_tokens] * cache.block_tokens
                + position % cache.block_tokens
                for span in spans
                for position in range(span.start, span.num_keys)
            ]
        )
        self._groups = [self._prepare(group) for group in _group_spans(spans)]

    def attend(self, layer: int, qkv: Tensor, qk_norm: Tensor | None) -> Tensor:
        """See `AttentionContext`."""
        query = self._write_cache(layer, qkv, qk_norm)
        output = torch.empty_like(query)
        for group in self._groups:
            attended = self._attend_group(group, layer, query)
            output.index_copy_(0, group.tokens, attended.index_select(0, group.rows))
        return output.flatten(1)

    def _write_cache(self, layer: int, qkv: Tensor, qk_norm: Tensor | None) -> Tensor:
        """Rotate; keep keys and values, return the queries [tokens, heads, head_dim]."""
        heads = qkv.view(qkv.shape[0], -1, self._head_dim)
        num_qk_heads = heads.shape[1] - self._num_kv_heads
        num_heads = num_qk_heads - self._num_kv_heads
        qk = heads[:, :num_qk_heads]
        if qk_norm is not None:
            # Queries and keys are normalised together, then weighted by a row for each head.
            qk = F.rms_norm(qk, qk.shape[-1:], None, self._eps) * qk_norm
        rotated = self._rotation.apply(qk)
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.flatten(1, 2).index_copy_(1, self._slot_mapping, rotated[:, num_heads:].transpose(0, 1))
        values.flatten(1, 2).index_copy_(1, self._slot_mapping, heads[:, num_qk_heads:].transpose(0, 1))
        return rotated[:, :num_heads]

    def _attend_group(self, group: _Group, layer: int, query: Tensor) -> Tensor:
        """[sequences * queries, heads, head_dim], padding included."""
        batch, num_queries = group.num_sequences, group.num_queries
        num_heads, head_dim = query.shape[1:]
        num_kv_heads = self._num_kv_heads
        share = num_heads // num_kv_heads  # query heads that read the same key head
        # The heads that share a key head become further queries of it, so that keys are never repeated.
        grouped = query.index_select(0, group.query_index)
        grouped = grouped.view(batch, num_queries, num_kv_heads, share, head_dim).permute(2, 0, 3, 1, 4)
        grouped = grouped.reshape(num_kv_heads, batch, share * num_queries, head_dim)
        key, value = (
            gathered.view(num_kv_heads, batch, -1, head_dim)
            for gathered in self._cache.gather(layer, group.head_blocks)
        )
        mask = group.masks[self._windows[layer]][:, None].expand(batch, share, num_queries, -1)
        mask = mask.reshape(1, batch, share * num_queries, -1)
        if num_queries == 1:
            # One busy-machine measurement, 86 sequences of 96 keys, against scaled_dot_product_attention:
            # 2.6 ms to 4.1 on two threads, 2.6 to 2.5 on one.
            scores = torch.matmul(grouped * head_dim**-0.5, key.transpose(2, 3)).add_(mask)
            attended = torch.matmul(scores.softmax(dim=-1), value)
        else:
            attended = scaled_dot_product_attention(grouped, key, value, attn_mask=mask)
        attended = attended.view(num_kv_heads, batch, share, num_queries, head_dim).permute(1, 3, 0, 2, 4)
        return attended.reshape(batch * num_queries, num_heads, head_dim)

    def _prepare(self, spans: Sequence[AttentionSpan]) -> _Group:
        num_queries = max(span.num_tokens for span in spans)
        block_tokens = self._cache.block_tokens
        num_blocks = max(-(-span.num_keys // block_tokens) for span in spans)
        query_index: list[int] = []
        blocks: list[int] = []
        tokens: list[int] = []
        rows: list[int] = []
        for i, span in enumerate(spans):
            own = range(span.first_token, span.first_token + span.num_tokens)
            query_index += [*own, *[span.first_token] * (num_queries - span.num_tokens)]
            needed = span.block_table[: -(-span.num_keys // block_tokens)]
            blocks += [*needed, *[needed[0]] * (num_blocks - len(needed))]
            tokens += own
            rows += range(i * num_queries, i * num_queries + span.num_tokens)
        masks = self._masks(spans, num_queries, num_blocks * block_tokens)
        return _Group(
            len(spans),
            num_queries,
            self._tensor(query_index),
            self._cache.head_blocks(self._tensor(blocks)),
            masks,
            self._tensor(tokens),
            self._tensor(rows),
        )

    def _masks(
        self, spans: Sequence[AttentionSpan], num_queries: int, num_keys: int
    ) -> dict[int | None, Tensor]:
        """A query at position p sees keys p - window + 1 … p; padding queries repeat the last position."""
        starts = self._tensor([span.start for span in spans])[:, None, None]
        ends = self._tensor([span.num_keys - 1 for span in spans])[:, None, None]
        query = torch.arange(num_queries, device=self._device)[None, :, None]
        key = torch.arange(num_keys, device=self._device)[None, None, :]
        position = torch.minimum(starts + query, ends)
        causal = key <= position
        visible = {
            window: causal if window is None else causal & (key > position - window)
            for window in set(self._windows)
        }
        unseen = torch.tensor(-torch.inf, dtype=self._cache.keys.dtype, device=self._device)
        return {window: torch.where(seen, 0.0, unseen) for window, seen in visible.items()}

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _group_spans(spans: Sequence[AttentionSpan]) -> list[list[AttentionSpan]]:
    """Spans of similar lengths together; a decoding sequence never shares a call with a prefilling one."""
    groups: list[list[AttentionSpan]] = []
    num_pairs = longest = 0
    for span in sorted(spans, key=lambda s: (s.num_tokens, s.num_keys)):
        own_pairs = span.num_tokens * span.num_keys
        if groups and (groups[-1][0].num_tokens == 1) == (span.num_tokens == 1):
            padded_pairs = (len(groups[-1]) + 1) * span.num_tokens * max(longest, span.num_keys)
            if padded_pairs <= max(MAX_PADDING * (num_pairs + own_pairs), PAIRS_WORTH_A_CALL):
                groups[-1].append(span)
                num_pairs += own_pairs
                longest = max(longest, span.num_keys)
                continue
        groups.append([span])
        num_pairs, longest = own_pairs, span.num_keys
    return groups
