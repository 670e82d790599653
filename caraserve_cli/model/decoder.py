"""The decoder of the Llama family: one class, configured, for every model that `config` accepts.

It turns a flat batch of tokens into hidden states and logits. Which sequences the tokens belong to, where
keys and values are kept, and which adapters are in use, is the business of the two contexts it is given. The
caller holds `torch.inference_mode`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.model.config import DecoderConfig
from caraserve_cli.model.contexts import AttentionContext, LoraContext
from caraserve_cli.model.rope import Rope, Rotation
from caraserve_cli.model.weights import DecoderWeights, LayerWeights

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
        shape = config.shape
        self._num_qk_heads = shape.num_heads + shape.num_kv_heads
        self._heads = (self._num_qk_heads + shape.num_kv_heads, shape.head_dim)
        self._qk_split = [shape.num_heads, shape.num_kv_heads]

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, activations, keys and values."""
        return self.weights.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embedding.device

    def forward(
        self, token_ids: Tensor, rotation: Rotation, attention: AttentionContext, lora: LoraContext
    ) -> Tensor:
        """Runs all layers over a flat batch of tokens.

        Args:
            token_ids: [T] int64.
            rotation: of each token, from `self.rope`.
            attention: writes the cache and attends.
            lora: adds the adapters' parts.

        Returns:
            Hidden states after the last norm, [T, hidden_size].
        """
        hidden = F.embedding(token_ids, self.weights.embedding)
        for index, layer in enumerate(self.weights.layers):
            hidden.add_(
                self._attention(index, layer, self._norm(hidden, layer.input_norm), rotation, attention, lora)
            )
            hidden.add_(self._mlp(index, layer, self._norm(hidden, layer.post_attention_norm), lora))
        return self._norm(hidden, self.weights.norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token id: [N, hidden_size] -> [N, vocab_size] in float32."""
        return F.linear(hidden, self.weights.lm_head).float()

    def _attention(
        self,
        index: int,
        layer: LayerWeights,
        x: Tensor,
        rotation: Rotation,
        attention: AttentionContext,
        lora: LoraContext,
    ) -> Tensor:
        qkv = F.linear(x, layer.qkv, layer.qkv_bias)
        lora.add(index, _QKV, x, qkv)
        heads = qkv.view(-1, *self._heads)
        qk = heads[:, : self._num_qk_heads]
        if layer.qk_norm is not None:
            # Queries and keys are normalised together, then weighted by a row for each head.
            qk = F.rms_norm(qk, qk.shape[-1:], None, self.config.rms_norm_eps) * layer.qk_norm
        query, key = torch.split(rotation.apply(qk), self._qk_split, dim=1)
        attended = attention.attend(index, query, key, heads[:, self._num_qk_heads :])
        out = F.linear(attended, layer.o, layer.o_bias)
        lora.add(index, _O, attended, out)
        return out

    def _mlp(self, index: int, layer: LayerWeights, x: Tensor, lora: LoraContext) -> Tensor:
        gate_up = F.linear(x, layer.gate_up, layer.gate_up_bias)
        lora.add(index, _GATE_UP, x, gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.silu(gate).mul_(up)
        out = F.linear(activated, layer.down, layer.down_bias)
        lora.add(index, _DOWN, activated, out)
        return out

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_norm_eps)
