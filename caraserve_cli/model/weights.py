"""The weights of a decoder: where every tensor lives, and what a checkpoint calls it.

Projections that read the same input are one tensor. A checkpoint's tensors are views into those, so a
loader fills them one by one and never holds a second copy. One of several processes has a part of most
tensors, and a slot says which. This module does not know files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from caraserve_cli.model.decoder_config import DecoderConfig

EMBEDDING_NAME = "model.embed_tokens.weight"
LM_HEAD_NAME = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """One decoder layer. H: hidden size, I: intermediate size, D: head_dim; a missing bias is None. All sizes
    but H are those of this process's part.

    Attributes:
        qkv: [(num_heads + 2 * num_kv_heads) * D, H].
        qk_norm: [num_heads + num_kv_heads, D], one row for each query and key head; None without q/k norm.
        o: [H, num_heads * D].
        gate_up: [2 * I, H].
        down: [H, I].
    """

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    o: Tensor
    o_bias: Tensor | None
    post_attention_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderWeights:
    """All layers, and what is before and after them. Tied, `lm_head` is `embedding` itself.

    Attributes:
        embedding, lm_head: [rows, H]; one of several processes has its rows of the vocabulary, padded with
            zeros to as many as the others have.
    """

    embedding: Tensor
    layers: tuple[LayerWeights, ...]
    norm: Tensor
    lm_head: Tensor

    @property
    def num_bytes(self) -> int:
        """What the weights take on the device."""
        tensors = {id(tensor): tensor for tensor in self._tensors()}
        return sum(tensor.nbytes for tensor in tensors.values())

    def _tensors(self) -> Iterator[Tensor]:
        yield from (self.embedding, self.norm, self.lm_head)
        for layer in self.layers:
            for field in LayerWeights.__slots__:
                tensor: Tensor | None = getattr(layer, field)
                if tensor is not None:
                    yield tensor


class Slot(NamedTuple):
    """Where one tensor of a checkpoint goes.

    Attributes:
        target: its place. It may be wider than what goes there: then that is broadcast.
        shape: of the tensor in the checkpoint.
        cut: the part of it that goes there; () for all of it.
    """

    target: Tensor
    shape: tuple[int, ...]
    cut: tuple[slice, ...] = ()


def empty_weights(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> DecoderWeights:
    """Uninitialised weights; every tensor is covered by `named_slots`."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def empty_if(wanted: bool, *shape: int) -> Tensor | None:
        return empty(*shape) if wanted else None

    def once_if(wanted: bool, width: int) -> Tensor | None:
        """A bias that the first process adds; the others' are zeros and stay so."""
        return torch.zeros(width, dtype=dtype, device=device) if wanted else None

    def vocabulary() -> Tensor:
        rows = empty(config.shard.vocabulary_rows(shape.vocab_size), hidden)
        own = config.shard.vocabulary(shape.vocab_size)
        rows[own.stop - own.start :].zero_()
        return rows

    shape = config.shape
    hidden, intermediate = shape.hidden_size, shape.intermediate_size
    num_qk_heads = shape.num_heads + shape.num_kv_heads
    qkv_width = (num_qk_heads + shape.num_kv_heads) * shape.head_dim
    embedding = vocabulary()
    layers = tuple(
        LayerWeights(
            input_norm=empty(hidden),
            qkv=empty(qkv_width, hidden),
            qkv_bias=empty_if(config.attention_bias_qkv, qkv_width),
            qk_norm=empty_if(config.qk_norm, num_qk_heads, shape.head_dim),
            o=empty(hidden, shape.num_heads * shape.head_dim),
            o_bias=once_if(config.attention_bias_o, hidden),
            post_attention_norm=empty(hidden),
            gate_up=empty(2 * intermediate, hidden),
            gate_up_bias=empty_if(config.mlp_bias, 2 * intermediate),
            down=empty(hidden, intermediate),
            down_bias=once_if(config.mlp_bias, hidden),
        )
        for _ in range(shape.num_layers)
    )
    lm_head = embedding if config.tie_word_embeddings else vocabulary()
    return DecoderWeights(embedding=embedding, layers=layers, norm=empty(hidden), lm_head=lm_head)


def named_slots(weights: DecoderWeights, config: DecoderConfig) -> dict[str, Slot]:
    """Every tensor that a checkpoint of this model holds, by its name there."""
    slots = {
        EMBEDDING_NAME: _vocabulary(weights.embedding, config),
        "model.norm.weight": _whole(weights.norm),
    }
    if not config.tie_word_embeddings:
        slots[LM_HEAD_NAME] = _vocabulary(weights.lm_head, config)
    for index, layer in enumerate(weights.layers):
        prefix = f"model.layers.{index}"
        slots[f"{prefix}.input_layernorm.weight"] = _whole(layer.input_norm)
        slots[f"{prefix}.post_attention_layernorm.weight"] = _whole(layer.post_attention_norm)
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        _add_linear(slots, config, attention, ("q_proj", "k_proj", "v_proj"), layer.qkv, layer.qkv_bias)
        _add_linear(slots, config, attention, ("o_proj",), layer.o, layer.o_bias)
        _add_linear(slots, config, mlp, ("gate_proj", "up_proj"), layer.gate_up, layer.gate_up_bias)
        _add_linear(slots, config, mlp, ("down_proj",), layer.down, layer.down_bias)
        if layer.qk_norm is not None:
            num_heads, one_head = config.shape.num_heads, (config.shape.head_dim,)
            slots[f"{attention}.q_norm.weight"] = Slot(layer.qk_norm[:num_heads], one_head)
            slots[f"{attention}.k_norm.weight"] = Slot(layer.qk_norm[num_heads:], one_head)
    return slots


def _whole(tensor: Tensor) -> Slot:
    return Slot(tensor, tuple(tensor.shape))


def _vocabulary(rows: Tensor, config: DecoderConfig) -> Slot:
    whole = (config.shape.vocab_size, rows.shape[1])
    if config.shard.is_whole:
        return Slot(rows, whole)
    own = config.shard.vocabulary(config.shape.vocab_size)
    return Slot(rows[: own.stop - own.start], whole, (own,))


def _add_linear(
    slots: dict[str, Slot],
    config: DecoderConfig,
    prefix: str,
    modules: tuple[str, ...],
    fused: Tensor,
    fused_bias: Tensor | None,
) -> None:
    """Adds the slots of `modules`, whose outputs lie side by side in `fused`."""
    shard = config.shard
    widths = [config.shape.module_shape(module)[1] for module in modules]
    for module, part in zip(modules, torch.split(fused, widths), strict=True):
        in_width, out_width = config.whole_shape.module_shape(module)
        cut = (shard.outputs(module, out_width), shard.inputs(module, in_width))
        slots[f"{prefix}.{module}.weight"] = Slot(part, (out_width, in_width), () if shard.is_whole else cut)
    if fused_bias is None:
        return
    for module, part in zip(modules, torch.split(fused_bias, widths), strict=True):
        out_width = config.whole_shape.module_shape(module)[1]
        own = shard.bias(module, out_width)
        slots[f"{prefix}.{module}.bias"] = Slot(
            part[: own.stop - own.start], (out_width,), () if shard.is_whole else (own,)
        )
