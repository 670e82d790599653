"""Tiny checkpoints written by transformers, and a dense attention, for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from caraserve_cli.model.contexts import NoLora
from caraserve_cli.model.decoder import Decoder
from caraserve_cli.model.decoder_config import DecoderConfig
from caraserve_cli.model.rope import Rotation

CPU = torch.device("cpu")
VOCAB_SIZE = 128
_SIZES: dict[str, object] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCAB_SIZE,
    "max_position_embeddings": 64,
}


class Family(NamedTuple):
    """One kind of model, by the classes of transformers, and what sets it apart."""

    config: type[PreTrainedConfig]
    model: type[PreTrainedModel]
    settings: dict[str, object]


FAMILIES = {
    "llama": Family(LlamaConfig, LlamaForCausalLM, {}),
    "llama-gqa-tied": Family(
        LlamaConfig, LlamaForCausalLM, {"num_key_value_heads": 2, "tie_word_embeddings": True}
    ),
    "llama-biased": Family(LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}),
    "mistral-sliding": Family(
        MistralConfig, MistralForCausalLM, {"num_key_value_heads": 2, "sliding_window": 5, "head_dim": 16}
    ),
    "qwen2": Family(Qwen2Config, Qwen2ForCausalLM, {"num_key_value_heads": 2}),
    "qwen2-sliding": Family(
        Qwen2Config,
        Qwen2ForCausalLM,
        {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": Family(Qwen3Config, Qwen3ForCausalLM, {"num_key_value_heads": 2, "head_dim": 16}),
}


def write_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.float32,
    max_shard_size: str = "5GB",
    **settings: object,
) -> PreTrainedModel:
    """Writes a random model of `family` to `folder` and returns transformers' own instance of it."""
    kind = FAMILIES[family]
    torch.manual_seed(0)
    model = kind.model(kind.config(**{**_SIZES, **kind.settings, **settings})).to(dtype).eval()
    for parameter in model.parameters():
        # Also biases and norms, which transformers would leave at 0 and 1.
        parameter.data.normal_(std=0.3)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    return model


class DenseAttention:
    """All tokens are one sequence, attended at once; checks that layers come in order."""

    def __init__(self, config: DecoderConfig, rotation: Rotation) -> None:
        self._config = config
        self._rotation = rotation
        self.layers: list[int] = []

    def attend(self, layer: int, qkv: Tensor, qk_norm: Tensor | None) -> Tensor:
        self.layers.append(layer)
        num_tokens, shape = qkv.shape[0], self._config.shape
        sizes = (shape.num_heads + shape.num_kv_heads, shape.num_kv_heads)
        qk, value = qkv.view(num_tokens, -1, shape.head_dim).split(sizes, dim=1)
        if qk_norm is not None:
            qk = F.rms_norm(qk, qk.shape[-1:], None, self._config.rms_norm_eps) * qk_norm
        query, key = self._rotation.apply(qk).split((shape.num_heads, shape.num_kv_heads), dim=1)
        distance = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)
        visible = distance >= 0
        window = self._config.sliding_window[layer]
        if window is not None:
            visible &= distance < window
        heads_first = (x.transpose(0, 1)[None] for x in (query, key, value))
        out = F.scaled_dot_product_attention(*heads_first, attn_mask=visible, enable_gqa=True)
        return out[0].transpose(0, 1).reshape(num_tokens, -1)


@torch.inference_mode()
def logits_of(decoder: Decoder, token_ids: Tensor) -> Tensor:
    """[T, vocab_size] for one sequence, prompt and all, in one pass."""
    positions = torch.arange(token_ids.shape[0])
    variants = torch.full_like(positions, decoder.rope.variant(token_ids.shape[0]))
    rotation = decoder.rope.rotation(positions, variants)
    attention = DenseAttention(decoder.config, rotation)
    return decoder.logits(decoder.forward(token_ids, attention, NoLora())).float()


def some_token_ids(num_tokens: int) -> Tensor:
    """Token ids, the same on every call."""
    return torch.randint(0, VOCAB_SIZE, (num_tokens,), generator=torch.Generator().manual_seed(1))
