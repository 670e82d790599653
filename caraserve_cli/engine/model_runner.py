"""Executes step plans on the CPU: from sequences to tensors, through the decoder, to tokens.

Where several processes hold the base, the first one executes plans, and the others follow it: they
compute what it has laid out. Knows no queues, no admission and no requests' text.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch
from torch import Tensor

from caraserve_cli.adapters.device_pool import DevicePool
from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.coldstart.assistant import Assistance, Assistant, AssistedSegment, assist_outcome
from caraserve_cli.coldstart.assisted_lora import AssistedLora
from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.engine.cpu_adapters import CpuAdapters
from caraserve_cli.engine.cpu_batch import CpuBatch
from caraserve_cli.engine.lora_batch import LoraBatcher
from caraserve_cli.model.attention import KvCache, PagedSdpaAttention
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

    # A step is computed when `launch` returns, and nothing beside it.
    max_in_flight = 1
    beside = None

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

    def launch(self, plan: StepPlan) -> KnownTokens:
        """Compute a plan's chunks."""
        return self.compute(self.lay_out(plan))

    def lay_out(self, plan: StepPlan) -> CpuBatch:
        """A plan's chunks side by side."""
        chunks = sorted(plan.chunks, key=self._place_in_batch)
        return CpuBatch.build(chunks, self._decoder.rope.variant)

    @torch.inference_mode()
    def compute(self, batch: CpuBatch) -> KnownTokens:
        """Compute what was laid out."""
        assistance, lora = self._lora_context(batch)
        logits = self._logits(batch, lora)
        outcome = assist_outcome(assistance)
        if logits is None:
            return KnownTokens([], outcome=outcome)
        sampled = sample(logits.float(), [c.sequence for c in batch.yielding])
        return KnownTokens(list(zip(batch.yielding, sampled, strict=True)), outcome=outcome)

    @torch.inference_mode()
    def follow(self, batch: CpuBatch) -> None:
        """Compute this process's part of what another one has laid out and chooses the tokens of."""
        _, lora = self._lora_context(batch)
        self._logits(batch, lora)

    def _logits(self, batch: CpuBatch, lora: LoraContext) -> Tensor | None:
        """[yielding chunks, vocabulary]; None if there are none."""
        rope, config = self._decoder.rope, self._decoder.config
        variants = torch.tensor(batch.rope_variants) if any(batch.rope_variants) else None
        attention = PagedSdpaAttention(
            self._cache,
            batch.spans,
            config.sliding_window,
            rope.rotation(self._tensor(batch.positions), variants),
            config.rms_norm_eps,
        )
        hidden = self._decoder.forward(self._tensor(batch.token_ids), attention, lora)
        if not batch.last_tokens:
            return None
        return self._decoder.logits(hidden.index_select(0, self._tensor(batch.last_tokens)))

    def _lora_context(self, batch: CpuBatch) -> tuple[Assistance | None, LoraContext]:
        """What adds the adapters' part, and the CPU workers' part in that, None if they have none."""
        segments, num_tokens = batch.segments, batch.num_assisted_tokens
        if not num_tokens:
            return None, self._lora.begin(segments)
        assisted = [segment for segment in segments if segment.first_token < num_tokens]
        early = self._lora.begin(segments[len(assisted) :])
        # What is lent is here too, but no context of this device's adds it: it is CPU workers' in all layers.
        on_device = [segment for segment in assisted if segment.first_token >= batch.num_lent_tokens]
        late = self._lora.begin(on_device).followed_by(early)
        cpu_layers = batch.cpu_layers
        if self._assistant is None:
            return None, late
        to_assist = [AssistedSegment(*segment) for segment in assisted]
        assistance = self._assistant.begin(to_assist, num_tokens, cpu_layers)
        if assistance is None and batch.num_lent_tokens:
            assistance = self._assistant.miss(cpu_layers)
        if assistance is None:
            return None, late
        assistance.tell_device()
        all_groups = frozenset(range(len(FUSED_MODULES)))
        return assistance, AssistedLora(early, late, self._assistant.ops, cpu_layers, all_groups)

    def _place_in_batch(self, chunk: ScheduledChunk) -> tuple[bool, bool, tuple[int, int]]:
        """Chunks of one adapter side by side, those that are assisted first, and of these those that are lent
        their adapter; those without an adapter last, where LoRA never looks."""
        if chunk.lent_slot is not None:
            return False, False, (-1, chunk.lent_slot)
        adapter_slot = chunk.sequence.adapter_slot
        order = (0, 0) if adapter_slot is None else self._lora.order(adapter_slot)
        return not chunk.cpu_layers, adapter_slot is None, order

    def _tensor(self, values: SequenceOf[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)
