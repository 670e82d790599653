"""What a forward pass is given from outside: how tokens attend, and what their adapters add.

The decoder calls these two protocols once per layer and knows nothing of caches, block tables, adapter
pools or strategies. This module does not know who implements them.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AttentionContext(Protocol):
    """The ragged structure of one batch, and its key/value cache."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Writes `key` and `value` to the cache of `layer`, then attends.

        Args:
            layer: index of the decoder layer, from 0.
            query: [T, num_heads, head_dim], rotated. Its rows may be strided (a view of the fused
                projection); the last dimension is contiguous. Not scaled yet.
            key: [T, num_kv_heads, head_dim], rotated; strided as `query`.
            value: [T, num_kv_heads, head_dim]; strided as `query`.

        Returns:
            [T, num_heads * head_dim], in the dtype of `query`.
        """
        ...


class LoraContext(Protocol):
    """The adapters of one batch."""

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """Adds to `y`, in place, what each token's adapter makes of `x`.

        Args:
            layer: index of the decoder layer, from 0.
            modules: one of core.FUSED_MODULES; the columns of `y` are these modules' outputs side by side.
            x: [T, input width], the input that all of `modules` share.
            y: [T, sum of output widths], the base model's output.
        """
        ...


class NoLora:
    """A batch without adapters: adds nothing."""

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """Leaves `y` as it is."""
