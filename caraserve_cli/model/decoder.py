"""The decoder of the Llama family: one class, configured, for every model that `config` accepts.

It turns a flat batch of tokens into hidden states and logits. Which sequences the tokens belong to, where
keys and values are kept, and which adapters are in use, is the business of the two contexts it is given; how
an operator is computed on a device is that of `caraserve_kernels`. The caller holds `torch.inference_mode`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.model.config import DecoderConfig
from caraserve_cli.model.contexts import AttentionContext, LoraContext
from caraserve_cli.model.rope import Rope
from caraserve_cli.model.weights import DecoderWeights, LayerWeights
from caraserve_kernels.linear import linear
from caraserve_kernels.rms_norm import add_rms_norm
from caraserve_kernels.silu_mul import silu_mul

_QKV, _O, _GATE_UP, _DOWN = FUSED_MODULES


class Decoder:
    """A base model, ready to run.

    Args:
        config: what model it is.
        weights: its weights, all of one dtype on one device.
    """

    def __init__(self, config: DecoderConfig, weights: DecoderWeights) -> None:
        self.config = config
        self.weights = weights
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
        *_, hidden = self.pieces(token_ids, attention, lora, (len(self.weights.layers),))
        return hidden

    def pieces(
        self, token_ids: Tensor, attention: AttentionContext, lora: LoraContext, layer_ends: Sequence[int]
    ) -> Iterator[Tensor]:
        """`forward` cut into pieces, one computed for each item that is taken.

        Args:
            token_ids, attention, lora: those of `forward`.
            layer_ends: the layer after the last one of each piece, ascending, at last the number of layers.

        Yields:
            Hidden states [T, hidden_size]: those of the last piece are what `forward` returns.
        """
        eps = self.config.rms_norm_eps
        hidden = F.embedding(token_ids, self.weights.embedding)
        delta = None  # what the next norm adds to the residual stream first
        layers = iter(enumerate(self.weights.layers))
        for first, end in pairwise((0, *layer_ends)):
            for index, layer in islice(layers, end - first):
                x = add_rms_norm(hidden, delta, layer.input_norm, eps)
                delta = self._attention(index, layer, x, attention, lora)
                x = add_rms_norm(hidden, delta, layer.post_attention_norm, eps)
                delta = self._mlp(index, layer, x, lora)
            if end == len(self.weights.layers):
                hidden = add_rms_norm(hidden, delta, self.weights.norm, eps)
            yield hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token id: [N, hidden_size] -> [N, vocab_size], in the dtype of the run."""
        return linear(hidden, self.weights.lm_head)

    def _attention(
        self, index: int, layer: LayerWeights, x: Tensor, attention: AttentionContext, lora: LoraContext
    ) -> Tensor:
        qkv = _project(index, _QKV, x, layer.qkv, layer.qkv_bias, lora)
        attended = attention.attend(index, qkv, layer.qk_norm)
        return _project(index, _O, attended, layer.o, layer.o_bias, lora)

    def _mlp(self, index: int, layer: LayerWeights, x: Tensor, lora: LoraContext) -> Tensor:
        gate_up = _project(index, _GATE_UP, x, layer.gate_up, layer.gate_up_bias, lora)
        return _project(index, _DOWN, silu_mul(gate_up), layer.down, layer.down_bias, lora)


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
