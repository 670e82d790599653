"""Attention over the paged KV cache on a GPU: the contexts of a step that only decodes, and of any other.

All tensors are given from outside, at addresses that do not change, so that a CUDA graph can hold the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caraserve_cli.model.attention import KvCache
from caraserve_cli.model.rope import Rotation
from caraserve_kernels.paged_decode import DecodeScratch, paged_decode, plan_decode
from caraserve_kernels.paged_prefill import PrefillTiling, paged_prefill
from caraserve_kernels.rope_cache import rope_and_cache


@dataclass(frozen=True, slots=True, eq=False)
class PagedBatch:
    """What both kinds of step share.

    Attributes:
        cache: keys and values of all layers.
        windows: the sliding window of each layer, None where a layer sees everything.
        eps: of the heads' norm, where the base has one.
        rotation: of each token.
        slot_mapping: [tokens], each token's place in the cache, negative for padding.
        block_tables: [sequences, most blocks].
        context_lens: [sequences], 0 for padding.
    """

    cache: KvCache
    windows: Sequence[int | None]
    eps: float
    rotation: Rotation
    slot_mapping: Tensor
    block_tables: Tensor
    context_lens: Tensor

    def write(self, layer: int, qkv: Tensor, qk_norm: Tensor | None) -> Tensor:
        """Write rotated keys and values to the cache; the rotated queries [tokens, heads, head_dim]."""
        num_kv_heads, head_dim = self.cache.keys.shape[1], self.cache.keys.shape[4]
        num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
        query = torch.empty(qkv.shape[0], num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
        rope_and_cache(
            qkv,
            self.rotation.cos.squeeze(1),
            self.rotation.sin.squeeze(1),
            qk_norm,
            self.eps,
            self.slot_mapping,
            *self.layer_cache(layer),
            num_heads,
            num_kv_heads,
            query,
        )
        return query

    def layer_cache(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer."""
        return self.cache.keys[layer], self.cache.values[layer]

    def window(self, layer: int) -> int:
        """The layer's sliding window, 0 for none."""
        return self.windows[layer] or 0


class DecodeAttention:
    """`AttentionContext` of a step in which every sequence has one token; `scratch` outlives it."""

    def __init__(self, batch: PagedBatch, scratch: DecodeScratch, num_sms: int) -> None:
        self._batch = batch
        self._scratch = scratch
        self._num_sms = num_sms

    def attend(self, layer: int, qkv: Tensor, qk_norm: Tensor | None) -> Tensor:
        """See `AttentionContext`."""
        query = self._batch.write(layer, qkv, qk_norm)
        out = torch.empty_like(query)
        keys, values = self._batch.layer_cache(layer)
        num_sequences, num_heads, head_dim = query.shape
        paged_decode(
            query,
            keys,
            values,
            self._batch.block_tables,
            self._batch.context_lens,
            self._batch.window(layer),
            head_dim**-0.5,
            out,
            self._scratch,
            plan_decode(num_sequences, num_heads, keys.shape[0], query.dtype, self._num_sms),
        )
        return out.flatten(1)


class ChunkAttention:
    """`AttentionContext` of a step with prompts in it.

    Args:
        batch: the step.
        first_tokens: [sequences + 1], where each sequence's tokens begin in the batch.
        tiles: what `paged_prefill.build_prefill_tiles` made for `tiling`.
        tiling: how chunks are cut.
    """

    def __init__(self, batch: PagedBatch, first_tokens: Tensor, tiles: Tensor, tiling: PrefillTiling) -> None:
        self._batch = batch
        self._first_tokens = first_tokens
        self._tiles = tiles
        self._tiling = tiling

    def attend(self, layer: int, qkv: Tensor, qk_norm: Tensor | None) -> Tensor:
        """See `AttentionContext`."""
        query = self._batch.write(layer, qkv, qk_norm)
        out = torch.empty_like(query)
        paged_prefill(
            query,
            *self._batch.layer_cache(layer),
            self._batch.block_tables,
            self._first_tokens,
            self._batch.context_lens,
            self._batch.window(layer),
            query.shape[2] ** -0.5,
            out,
            self._tiles,
            self._tiling,
        )
        return out.flatten(1)
