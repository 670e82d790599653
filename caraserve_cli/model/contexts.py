"""What a forward pass is given from outside: how tokens attend, and what their adapters add.

The decoder calls these two protocols once per layer and knows nothing of caches, block tables, adapter
pools or strategies. This module does not know who implements them.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class AttentionContext(Protocol):
    """The ragged structure of one batch, its positions, and its key/value cache."""

    def attend(self, layer: int, qkv: Tensor, qk_norm: Tensor | None) -> Tensor:
        """Normalises and rotates queries and keys, writes keys and values to the cache, then attends.

        Args:
            layer: index of the decoder layer, from 0.
            qkv: [T, (num_heads + 2 * num_kv_heads) * head_dim], the fused projection's output.
            qk_norm: [num_heads + num_kv_heads, head_dim], the weights of the heads' RMS norm, or None.

        Returns:
            [T, num_heads * head_dim], in the dtype of `qkv`.
        """
        ...


class LoraContext(Protocol):
    """The adapters of one batch."""

    def begin(self, layer: int, modules: tuple[str, ...], x: Tensor) -> bool:
        """Starts on what needs only `x`, before the base's product with it is launched.

        Args:
            layer: index of the decoder layer, from 0.
            modules: one of core.FUSED_MODULES.
            x: [T, input width], the input that all of `modules` share.

        Returns:
            Whether a kernel has been launched that the base's product need not wait for (`linear`'s
            `beside`).
        """
        ...

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """Adds to `y`, in place, what each token's adapter makes of `x`; after `begin`.

        Args:
            layer, modules, x: those of `begin`.
            y: [T, sum of output widths], the base model's output, the modules' side by side.
        """
        ...


class NoLora:
    """A batch without adapters: adds nothing."""

    def begin(self, layer: int, modules: tuple[str, ...], x: Tensor) -> bool:
        """Starts nothing."""
        return False

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """Leaves `y` as it is."""
