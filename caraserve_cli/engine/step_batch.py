"""One step's chunks as the flat arrays that kernels read. numpy, no torch: it only lays numbers out.

Chunks of one adapter are neighbours; those that CPU workers assist come first, and of these those that are
lent their adapter; those without an adapter last, where LoRA never looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caraserve_cli.step_plan import ScheduledChunk

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """A ragged batch of `num_tokens` tokens in `len(chunks)` sequences.

    Attributes:
        chunks: in the order of the batch; none in a process that only follows.
        token_ids: [tokens]; 0 where the token is still under way.
        feed_rows: [tokens], from 1 on the row of the last step's output tokens that holds the token, 0 where
            it is in `token_ids`.
        positions: [tokens], each token's place in its sequence.
        slot_mapping: [tokens], its place in the KV cache.
        first_tokens: [sequences + 1], where each chunk begins.
        context_lens: [sequences], keys that the chunk's last token sees.
        last_tokens: [yielding chunks], the batch's tokens after which one is sampled.
        segments: [adapters, 3], (adapter slot, first token, number of tokens), those of lent adapters first.
        block_tables: [sequences, most blocks], each as far as its context goes, zeros behind.
        num_assisted_tokens: those at the head that CPU workers assist.
        cpu_layers: leading layers in which they do, 0 where there are none.
        num_lent_tokens: of the assisted ones, those at the head whose adapters are not on the device.
    """

    chunks: tuple[ScheduledChunk, ...]
    token_ids: Ints
    feed_rows: Ints
    positions: Ints
    slot_mapping: Ints
    first_tokens: Ints
    context_lens: Ints
    last_tokens: Ints
    segments: Ints
    block_tables: Ints
    num_assisted_tokens: int
    cpu_layers: int
    num_lent_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_sequences(self) -> int:
        return len(self.context_lens)

    @property
    def is_decode(self) -> bool:
        """Whether every chunk is one token that yields the next one, and the device computes all of it."""
        is_one_each = self.num_tokens == self.num_sequences == len(self.last_tokens)
        return is_one_each and not self.num_lent_tokens

    @property
    def num_assisted_segments(self) -> int:
        """Segments at the head whose tokens are assisted."""
        return int(np.searchsorted(self.segments[:, 1], self.num_assisted_tokens))

    @property
    def device_segments(self) -> Ints:
        """Segments of the adapters that are on the device, or on their way there."""
        return self.segments[np.searchsorted(self.segments[:, 1], self.num_lent_tokens) :]

    @property
    def yielding(self) -> list[ScheduledChunk]:
        return [chunk for chunk in self.chunks if chunk.yields_token]

    @classmethod
    def build(
        cls, chunks: SequenceOf[ScheduledChunk], block_tokens: int, feed_row_of: dict[int, int]
    ) -> StepBatch:
        """Lay out chunks; `feed_row_of` has the row of each sequence's pending token, by its id()."""
        ordered = tuple(sorted(chunks, key=_place_in_batch))
        num_chunk_tokens = np.array([chunk.num_tokens for chunk in ordered], np.int32)
        first_tokens = np.zeros(len(ordered) + 1, np.int32)
        np.cumsum(num_chunk_tokens, out=first_tokens[1:])
        starts = np.array([chunk.start for chunk in ordered], np.int32)
        token_ids = np.zeros(first_tokens[-1], np.int32)
        feed_rows = np.zeros(first_tokens[-1], np.int32)
        slot_mapping = np.empty(first_tokens[-1], np.int32)
        for chunk, first in zip(ordered, first_tokens.tolist(), strict=False):
            _fill_chunk(chunk, first, block_tokens, token_ids, feed_rows, slot_mapping, feed_row_of)
        owners = np.repeat(np.arange(len(ordered), dtype=np.int32), num_chunk_tokens)
        places = np.arange(first_tokens[-1], dtype=np.int32) - first_tokens[owners]
        yields = np.array([chunk.yields_token for chunk in ordered], bool)
        return cls(
            ordered,
            token_ids,
            feed_rows,
            starts[owners] + places,
            slot_mapping,
            first_tokens,
            starts + num_chunk_tokens,
            first_tokens[1:][yields] - 1,
            _segments(ordered, first_tokens),
            _block_tables(ordered),
            sum(chunk.num_tokens for chunk in ordered if chunk.cpu_layers),
            max(chunk.cpu_layers for chunk in ordered),
            sum(chunk.num_tokens for chunk in ordered if chunk.lent_slot is not None),
        )

    def for_followers(self) -> StepBatch:
        """The same without sequences."""
        return dataclasses.replace(self, chunks=())


def _place_in_batch(chunk: ScheduledChunk) -> tuple[bool, bool, int]:
    adapter_slot = chunk.adapter_slot
    return chunk.lent_slot is None, not chunk.cpu_layers, 2**31 if adapter_slot is None else adapter_slot


def _fill_chunk(
    chunk: ScheduledChunk,
    first: int,
    block_tokens: int,
    token_ids: Ints,
    feed_rows: Ints,
    slot_mapping: Ints,
    feed_row_of: dict[int, int],
) -> None:
    sequence, start, end = chunk.sequence, chunk.start, chunk.start + chunk.num_tokens
    last = first + chunk.num_tokens - 1
    if end > len(sequence.token_ids):
        feed_rows[last] = feed_row_of[id(sequence)]
        end -= 1
    if chunk.num_tokens == 1:
        if end > start:
            token_ids[first] = sequence.token_ids[start]
        slot_mapping[first] = (
            sequence.block_table[start // block_tokens] * block_tokens + start % block_tokens
        )
        return
    token_ids[first : first + end - start] = sequence.token_ids[start:end]
    positions = np.arange(start, start + chunk.num_tokens, dtype=np.int32)
    blocks = np.array(sequence.block_table, np.int32)[positions // block_tokens]
    slot_mapping[first : last + 1] = blocks * block_tokens + positions % block_tokens


def _block_tables(chunks: SequenceOf[ScheduledChunk]) -> Ints:
    block_tables = [chunk.sequence.block_table for chunk in chunks]
    tables = np.zeros((len(chunks), max(map(len, block_tables))), np.int32)
    for row, block_table in zip(tables, block_tables, strict=True):
        row[: len(block_table)] = block_table
    return tables


def _segments(chunks: SequenceOf[ScheduledChunk], first_tokens: Ints) -> Ints:
    slots = np.array(
        [-1 if (adapter_slot := chunk.adapter_slot) is None else adapter_slot for chunk in chunks],
        np.int32,
    )
    begins = np.flatnonzero(np.diff(slots, prepend=-2))
    ends = np.append(begins[1:], slots.shape[0])
    segments = np.stack(
        [slots[begins], first_tokens[begins], first_tokens[ends] - first_tokens[begins]], axis=1
    )
    return segments[segments[:, 0] >= 0].astype(np.int32)
