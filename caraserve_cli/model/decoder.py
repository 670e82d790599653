"""The decoder of the Llama family: one class, configured, for every model that `config` accepts.

It turns a flat batch of tokens into hidden states and logits. Which sequences the tokens belong to, where
keys and values are kept, and which adapters are in use, is the business of the two contexts it is given;
how an operator is computed on a device is that of `caraserve_kernels`. Where several processes hold the
base, each with a part of it (`shard`), they are put together by the collective it is given: a sum after
the embedding, one after each o and down, and everyone's logits side by side. The caller holds
`torch.inference_mode`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.model.collective import Alone, Collective
from caraserve_cli.model.contexts import AttentionContext, LoraContext
from caraserve_cli.model.decoder_config import DecoderConfig
from caraserve_cli.model.rope import Rope
from caraserve_cli.model.weights import DecoderWeights, LayerWeights
from caraserve_kernels.linear import linear
from caraserve_kernels.rms_norm import add_rms_norm
from caraserve_kernels.silu_mul import silu_mul

_QKV, _O, _GATE_UP, _DOWN = FUSED_MODULES


class ResidualStream(NamedTuple):
    """What one layer hands to the next: `hidden` [T, hidden_size], to which `delta`, of the same shape, or
    None for nothing, is still to be added."""

    hidden: Tensor
    delta: Tensor | None


class Decoder:
    """A base model, ready to run.

    Args:
        config: what model it is.
        weights: its weights, all of one dtype on one device.
        collective: of the processes that hold it together; None if this one has all of it.
    """

    def __init__(
        self, config: DecoderConfig, weights: DecoderWeights, collective: Collective | None = None
    ) -> None:
        self.config = config
        self.weights = weights
        self.collective: Collective = Alone() if collective is None else collective
        self.rope = Rope(config.rope, self.dtype, self.device)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations, keys and values."""
        return self.weights.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embedding.device

    def forward(self, token_ids: Tensor, attention: AttentionContext, lora: LoraContext) -> Tensor:
        """Runs all layers over a flat batch of tokens.

        Args:
            token_ids: [T], int64 or int32.
            attention: rotates, writes the cache and attends.
            lora: adds the adapters' parts.

        Returns:
            Hidden states after the last norm, [T, hidden_size].
        """
        stream = self.embed(token_ids)
        stream = self.run_layers(range(len(self.weights.layers)), stream, attention, lora)
        return self.finish(stream)

    def embed(self, token_ids: Tensor) -> ResidualStream:
        """What goes into the first layer, for token_ids [T]."""
        embedding, shard = self.weights.embedding, self.config.shard
        if shard.is_whole:
            return ResidualStream(F.embedding(token_ids, embedding), None)
        rows = token_ids - shard.tp_index * embedding.shape[0]
        is_own = (rows >= 0) & (rows < embedding.shape[0])
        hidden = F.embedding(rows.clamp(0, embedding.shape[0] - 1), embedding)
        # One process has a token's row and the others add zeros: the sum is exact.
        hidden.masked_fill_(~is_own[:, None], 0.0)
        self.collective.all_reduce_(hidden)
        return ResidualStream(hidden, None)

    def run_layers(
        self, layers: range, stream: ResidualStream, attention: AttentionContext, lora: LoraContext
    ) -> ResidualStream:
        """Runs some layers; the tensors of `stream` may be overwritten. Contexts are those of `forward`."""
        eps, (hidden, delta) = self.config.rms_norm_eps, stream
        for index in layers:
            layer = self.weights.layers[index]
            x = add_rms_norm(hidden, delta, layer.input_norm, eps)
            delta = self._attention(index, layer, x, attention, lora)
            x = add_rms_norm(hidden, delta, layer.post_attention_norm, eps)
            delta = self._mlp(index, layer, x, lora)
        return ResidualStream(hidden, delta)

    def finish(self, stream: ResidualStream) -> Tensor:
        """The last norm; after it `stream` may be overwritten."""
        return add_rms_norm(stream.hidden, stream.delta, self.weights.norm, self.config.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token id: [N, hidden_size] -> [N, vocab_size], in the dtype of the run."""
        own = linear(hidden, self.weights.lm_head)
        return self.collective.gather_columns(own)[:, : self.config.shape.vocab_size]

    def _attention(
        self, index: int, layer: LayerWeights, x: Tensor, attention: AttentionContext, lora: LoraContext
    ) -> Tensor:
        qkv = _project(index, _QKV, x, layer.qkv, layer.qkv_bias, lora)
        attended = attention.attend(index, qkv, layer.qk_norm)
        summand = _project(index, _O, attended, layer.o, layer.o_bias, lora)
        self.collective.all_reduce_(summand)
        return summand

    def _mlp(self, index: int, layer: LayerWeights, x: Tensor, lora: LoraContext) -> Tensor:
        gate_up = _project(index, _GATE_UP, x, layer.gate_up, layer.gate_up_bias, lora)
        summand = _project(index, _DOWN, silu_mul(gate_up), layer.down, layer.down_bias, lora)
        self.collective.all_reduce_(summand)
        return summand


def _project(
    index: int,
    modules: tuple[str, ...],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora: LoraContext,
) -> Tensor:
    """The base's product for some modules of a layer, and what the adapters add to it."""
    beside = lora.begin(index, modules, x)
    y = linear(x, weight, bias, beside=beside)
    lora.add(index, modules, x, y)
    return y
