"""What a base model's config comes to. Knows no files and no transformers, which takes longer to import than
torch: a process that is given one, to hold a part of the base, does without.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from caraserve_cli.core import BaseShape
from caraserve_cli.model.rope_config import RopeConfig
from caraserve_cli.shard import WHOLE, Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Everything that makes one decoder differ from another.

    Attributes:
        sliding_window: per layer, the number of tokens that a token sees, itself included; None for all.
        eos_token_ids: the tokens that end an answer, in the order of the checkpoint; may be empty.
        dtype: the dtype that the config states for the weights; None where it states none.
        greedy_settings: of the base's generation_config.json; see `generation_config`.
        whole_shape: the base's sizes; `shape` has those of the part that this process holds.
        shard: which part that is.
    """

    model_type: str
    shape: BaseShape
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias_qkv: bool
    attention_bias_o: bool
    mlp_bias: bool
    qk_norm: bool
    sliding_window: tuple[int | None, ...]
    rope: RopeConfig
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
    dtype: torch.dtype | None
    whole_shape: BaseShape
    greedy_settings: Mapping[str, object] = field(default_factory=dict)
    shard: Shard = WHOLE

    def sharded(self, shard: Shard) -> DecoderConfig:
        """The same base as one of several processes has it.

        Raises:
            OptionError: its sizes do not divide by their number.
        """
        return dataclasses.replace(self, shape=shard.cut(self.whole_shape), shard=shard)

    @property
    def context_tokens(self) -> int:
        """The most tokens, prompt and answer together, that one sequence may hold."""
        return self.rope.context_tokens
