"""Tiny random base models of several families, and the shapes that adapters must fit."""

from __future__ import annotations

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from caraserve_cli.core import BaseShape

_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    # The usual 0.02 leaves layers this narrow with almost no say in the next token.
    "initializer_range": 0.2,
}


def tiny_llama() -> PreTrainedModel:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**_SIZES)).eval()


def tiny_qwen2() -> PreTrainedModel:
    """Attention bias and tied embeddings."""
    torch.manual_seed(2)
    return Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=True)).eval()


def tiny_qwen3() -> PreTrainedModel:
    """A head width of its own."""
    torch.manual_seed(3)
    return Qwen3ForCausalLM(Qwen3Config(**_SIZES, head_dim=16)).eval()


FAMILIES = {"llama": tiny_llama, "qwen2": tiny_qwen2, "qwen3": tiny_qwen3}


def shape_of(model: PreTrainedModel) -> BaseShape:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return BaseShape(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
    )
