"""One step's chunks side by side, as the CPU's runner computes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from caraserve_cli.engine.lora_batch import AdapterSegment
from caraserve_cli.model.attention import AttentionSpan
from caraserve_cli.step_plan import ScheduledChunk


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuBatch:
    """A ragged batch.

    Attributes:
        token_ids, positions, rope_variants: of each token.
        spans: of each chunk.
        segments: of each adapter, in the order of the batch, those of lent adapters first.
        last_tokens: the batch's tokens after which one is sampled.
        yielding: the chunks that these end; none in a process that only follows.
        num_assisted_tokens: those at the head that CPU workers assist.
        cpu_layers: leading layers in which they do, 0 where there are none.
        num_lent_tokens: of the assisted ones, those at the head whose adapters are not on the device.
    """

    token_ids: SequenceOf[int]
    positions: SequenceOf[int]
    rope_variants: SequenceOf[int]
    spans: SequenceOf[AttentionSpan]
    segments: SequenceOf[AdapterSegment]
    last_tokens: SequenceOf[int]
    yielding: SequenceOf[ScheduledChunk]
    num_assisted_tokens: int
    cpu_layers: int
    num_lent_tokens: int

    @classmethod
    def build(cls, chunks: SequenceOf[ScheduledChunk], rope_variant: Callable[[int], int]) -> CpuBatch:
        """Lay out chunks in this order; `rope_variant` tells the rotary frequencies of a prompt's length."""
        token_ids: list[int] = []
        positions: list[int] = []
        variants: list[int] = []
        spans: list[AttentionSpan] = []
        last_tokens: list[int] = []
        for chunk in chunks:
            sequence, end = chunk.sequence, chunk.start + chunk.num_tokens
            spans.append(AttentionSpan(len(token_ids), chunk.start, chunk.num_tokens, sequence.block_table))
            token_ids += sequence.token_ids[chunk.start : end]
            positions += range(chunk.start, end)
            variants += [rope_variant(sequence.num_prompt_tokens)] * chunk.num_tokens
            if chunk.yields_token:
                last_tokens.append(len(token_ids) - 1)
        return cls(
            token_ids=token_ids,
            positions=positions,
            rope_variants=variants,
            spans=spans,
            segments=_segments(chunks),
            last_tokens=last_tokens,
            yielding=[chunk for chunk in chunks if chunk.yields_token],
            num_assisted_tokens=sum(chunk.num_tokens for chunk in chunks if chunk.cpu_layers),
            cpu_layers=max(chunk.cpu_layers for chunk in chunks),
            num_lent_tokens=sum(chunk.num_tokens for chunk in chunks if chunk.lent_slot is not None),
        )

    def for_followers(self) -> CpuBatch:
        """The same without sequences: who follows chooses no tokens."""
        return dataclasses.replace(self, yielding=())


def _segments(chunks: SequenceOf[ScheduledChunk]) -> list[AdapterSegment]:
    segments: list[AdapterSegment] = []
    first_token = 0
    for chunk in chunks:
        adapter_slot = chunk.adapter_slot
        if adapter_slot is None:
            break
        if segments and segments[-1].adapter_slot == adapter_slot:
            segments[-1] = segments[-1]._replace(num_tokens=segments[-1].num_tokens + chunk.num_tokens)
        else:
            segments.append(AdapterSegment(adapter_slot, first_token, chunk.num_tokens))
        first_token += chunk.num_tokens
    return segments
