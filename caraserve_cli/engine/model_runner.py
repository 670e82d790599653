"""Executes step plans on the CPU: from sequences to tensors, through the decoder, to tokens.

Knows no queues, no admission and no requests' text.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import NoReturn

import torch
from torch import Tensor

from caraserve_cli.adapters.device_pool import DevicePool
from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.coldstart.assistant import Assistance, Assistant, AssistedSegment, assist_outcome
from caraserve_cli.coldstart.assisted_lora import AssistedLora
from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.engine.cpu_adapters import CpuAdapters
from caraserve_cli.engine.lora_batch import AdapterSegment, LoraBatcher
from caraserve_cli.model.attention import AttentionSpan, KvCache, PagedSdpaAttention
from caraserve_cli.model.contexts import LoraContext
from caraserve_cli.model.decoder import Decoder
from caraserve_cli.model.sampler import Sampled, sample
from caraserve_cli.step_plan import AssistOutcome, ScheduledChunk, StepPlan


class KnownTokens:
    """The `StepResult` of a step that has been computed."""

    def __init__(
        self,
        tokens: list[tuple[ScheduledChunk, Sampled]],
        adapter_copy_ms: float = 0.0,
        *,
        outcome: AssistOutcome = AssistOutcome.NONE,
    ) -> None:
        self._tokens = tokens
        self.adapter_copy_ms = adapter_copy_ms
        self.assist_outcome = outcome

    def sampled(self) -> list[tuple[ScheduledChunk, Sampled]]:
        """See `StepResult`."""
        return self._tokens


class ModelRunner:
    """The decoder, its KV cache and the adapters on its device.

    Attributes:
        adapters: see `Runner`.
    """

    # A step is computed when `launch` returns.
    max_in_flight = 1
    max_beside_tokens = 0

    def __init__(
        self,
        decoder: Decoder,
        host_store: HostStore,
        num_kv_blocks: int,
        kv_block_tokens: int,
        assistant: Assistant | None = None,
    ) -> None:
        self._decoder = decoder
        self._assistant = assistant
        self._device = decoder.device
        shape = decoder.config.shape
        self._cache = KvCache(shape, num_kv_blocks, kv_block_tokens, decoder.dtype, decoder.device)
        self._pool = DevicePool(shape, decoder.device)
        self._lora = LoraBatcher(shape, self._pool, decoder.device)
        self.adapters = CpuAdapters(host_store, self._pool, self._lora, assistant)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> KnownTokens:
        """Compute a plan's chunks."""
        chunks = sorted(plan.chunks, key=self._place_in_batch)
        assistance, lora = self._lora_context(chunks)
        hidden = self._forward(chunks, lora)
        yielding, last_tokens, num_tokens = [], [], 0
        for chunk in chunks:
            num_tokens += chunk.num_tokens
            if chunk.yields_token:
                yielding.append(chunk)
                last_tokens.append(num_tokens - 1)
        outcome = assist_outcome(assistance)
        if not yielding:
            return KnownTokens([], outcome=outcome)
        logits = self._decoder.logits(hidden.index_select(0, self._tensor(last_tokens))).float()
        sampled = sample(logits, [c.sequence for c in yielding])
        return KnownTokens(list(zip(yielding, sampled, strict=True)), outcome=outcome)

    def launch_beside(self, chunks: SequenceOf[ScheduledChunk]) -> NoReturn:
        """See `Runner`: nothing is computed beside what is computed at once."""
        raise NotImplementedError

    def _forward(self, chunks: SequenceOf[ScheduledChunk], lora: LoraContext) -> Tensor:
        """Hidden states [tokens, hidden] of all chunks, side by side."""
        token_ids: list[int] = []
        positions: list[int] = []
        variants: list[int] = []
        spans: list[AttentionSpan] = []
        for chunk in chunks:
            sequence, end = chunk.sequence, chunk.start + chunk.num_tokens
            spans.append(AttentionSpan(len(token_ids), chunk.start, chunk.num_tokens, sequence.block_table))
            token_ids += sequence.token_ids[chunk.start : end]
            positions += range(chunk.start, end)
            variants += [self._decoder.rope.variant(sequence.num_prompt_tokens)] * chunk.num_tokens
        rope, config = self._decoder.rope, self._decoder.config
        rotation = rope.rotation(self._tensor(positions), torch.tensor(variants) if any(variants) else None)
        attention = PagedSdpaAttention(
            self._cache, spans, config.sliding_window, rotation, config.rms_norm_eps
        )
        return self._decoder.forward(self._tensor(token_ids), attention, lora)

    def _lora_context(self, chunks: SequenceOf[ScheduledChunk]) -> tuple[Assistance | None, LoraContext]:
        """What adds the adapters' part, and the CPU workers' part in that, None if they have none."""
        segments = _adapter_segments(chunks)
        num_tokens = sum(chunk.num_tokens for chunk in chunks if chunk.cpu_layers)
        if not num_tokens:
            return None, self._lora.begin(segments)
        assisted = [segment for segment in segments if segment.first_token < num_tokens]
        early = self._lora.begin(segments[len(assisted) :])
        late = self._lora.begin(assisted).followed_by(early)
        cpu_layers = max(chunk.cpu_layers for chunk in chunks)
        if self._assistant is None:
            return None, late
        to_assist = [AssistedSegment(*segment) for segment in assisted]
        assistance = self._assistant.begin(to_assist, num_tokens, cpu_layers)
        if assistance is None:
            return None, late
        assistance.tell_device()
        all_groups = frozenset(range(len(FUSED_MODULES)))
        return assistance, AssistedLora(early, late, self._assistant.ops, cpu_layers, all_groups)

    def _place_in_batch(self, chunk: ScheduledChunk) -> tuple[bool, bool, tuple[int, int]]:
        """Chunks of one adapter side by side, those that are assisted first; those without an adapter last,
        where LoRA never looks."""
        adapter_slot = chunk.sequence.adapter_slot
        order = (0, 0) if adapter_slot is None else self._lora.order(adapter_slot)
        return not chunk.cpu_layers, adapter_slot is None, order

    def _tensor(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _adapter_segments(chunks: SequenceOf[ScheduledChunk]) -> list[AdapterSegment]:
    segments: list[AdapterSegment] = []
    first_token = 0
    for chunk in chunks:
        adapter_slot = chunk.sequence.adapter_slot
        if adapter_slot is None:
            break
        if segments and segments[-1].adapter_slot == adapter_slot:
            segments[-1] = segments[-1]._replace(num_tokens=segments[-1].num_tokens + chunk.num_tokens)
        else:
            segments.append(AdapterSegment(adapter_slot, first_token, chunk.num_tokens))
        first_token += chunk.num_tokens
    return segments
