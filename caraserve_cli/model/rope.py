"""Rotary position embedding: angles for the tokens of a ragged batch.

The frequencies of a request are fixed by the length of its prompt, so that no chunk size, preemption or batch
changes an answer. Most kinds have one set of frequencies, variant 0. `longrope` has a second, variant 1, for
prompts beyond its original context; `dynamic` has one for each such prompt length. The numbers of all kinds
but the default come from transformers' own functions. This module does not know sequences or caches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from caraserve_cli.model.rope_config import RopeConfig

BASE_VARIANT = 0
_LONG_VARIANT = 1
# Positions of a table that are computed at a time, in float32.
_TABLE_PIECE = 8192


class Rotation(NamedTuple):
    """The rotation of each token of a batch, the same for all layers and heads.

    `cos` and `sin` are [T, 1, head_dim] in the dtype of the run; the first half of `sin` is negated, so that
    `x * cos + x.roll(head_dim // 2) * sin` rotates.
    """

    cos: Tensor
    sin: Tensor

    @classmethod
    def looked_up(cls, table: Tensor, positions: Tensor) -> Rotation:
        """That of the base variant at `positions` [T], int32 or int64, from what `Rope.table` gave."""
        rows = table.index_select(0, positions)
        return cls(rows[:, :1], rows[:, 1:])

    def apply(self, x: Tensor) -> Tensor:
        """Rotates `x` [T, heads, head_dim]; a new tensor."""
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, -1), self.sin)


class Rope:
    """The frequencies of one base model.

    Args:
        config: the rope settings.
        dtype: of the rotations; angles are computed in float32.
        device: where rotations are computed.
    """

    def __init__(self, config: RopeConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._config = config
        self._dtype = dtype
        self._device = device
        base, self._attention_scaling = _frequencies(config, num_tokens=None)
        # Grows by one small row for each variant met, for `dynamic` at most one a prompt length.
        self._inv_freq: dict[int, Tensor] = {BASE_VARIANT: base.to(device)}

    def variant(self, num_prompt_tokens: int) -> int:
        """The variant of a request with this many prompt tokens; belongs in the key of cached prefixes."""
        kind = self._config.kind
        if kind not in ("dynamic", "longrope") or num_prompt_tokens <= self._config.original_context_tokens:
            return BASE_VARIANT
        return num_prompt_tokens if kind == "dynamic" else _LONG_VARIANT

    def rotation(self, positions: Tensor, variants: Tensor | None = None) -> Rotation:
        """The rotation of each token.

        Args:
            positions: [T] int64, each token's position in its sequence, on the device of the run.
            variants: [T] int64 in host memory, each token's variant; None where all are the base variant.
        """
        angles = positions[:, None].float() * self._inv_freq_of(variants)
        cos, sin = angles.cos(), angles.sin()
        if self._attention_scaling != 1.0:
            cos, sin = cos * self._attention_scaling, sin * self._attention_scaling
        return Rotation(
            torch.cat((cos, cos), dim=-1).to(self._dtype).unsqueeze(1),
            torch.cat((-sin, sin), dim=-1).to(self._dtype).unsqueeze(1),
        )

    def table(self, num_positions: int) -> Tensor:
        """The rotations of positions 0 … `num_positions` - 1 in the base variant, to be looked up by steps
        that compute them one kernel after the other: cos and sin, [positions, 2, head_dim]."""
        table = torch.empty(num_positions, 2, self._config.head_dim, dtype=self._dtype, device=self._device)
        for first in range(0, num_positions, _TABLE_PIECE):
            end = min(first + _TABLE_PIECE, num_positions)
            rotation = self.rotation(torch.arange(first, end, device=self._device))
            table[first:end] = torch.cat(rotation, dim=1)
        return table

    def _inv_freq_of(self, variants: Tensor | None) -> Tensor:
        """[head_dim / 2], or [T, head_dim / 2] where tokens differ."""
        if variants is None:
            return self._inv_freq[BASE_VARIANT]
        distinct, rows = torch.unique(variants, return_inverse=True)
        table = torch.stack([self._of_variant(variant) for variant in distinct.tolist()])
        return table[rows.to(self._device)]

    def _of_variant(self, variant: int) -> Tensor:
        known = self._inv_freq.get(variant)
        if known is None:
            longrope = self._config.kind == "longrope"
            num_tokens = self._config.original_context_tokens + 1 if longrope else variant
            known = _frequencies(self._config, num_tokens)[0].to(self._device)
            self._inv_freq[variant] = known
        return known


def _frequencies(config: RopeConfig, num_tokens: int | None) -> tuple[Tensor, float]:
    """Inverse frequencies [head_dim / 2] in float32, and the factor of cos and sin."""
    if config.kind == "default":
        theta = config.parameters["rope_theta"]
        assert isinstance(theta, int | float)
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float) / config.head_dim
        return 1.0 / (theta**exponents), 1.0
    # Here, for processes that hold a part of a base with the default kind to start without transformers.
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    # It computes them from a config; one head is all that it looks at.
    one_head = LlamaConfig(
        hidden_size=config.head_dim,
        num_attention_heads=1,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
        rope_parameters=dict(config.parameters),
    )
    inv_freq, attention_scaling = ROPE_INIT_FUNCTIONS[config.kind](one_head, seq_len=num_tokens)
    return inv_freq, float(attention_scaling)
