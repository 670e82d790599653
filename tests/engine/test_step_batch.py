"""A step's chunks as flat arrays, against the same laid out token by token."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from caraserve_cli.core import Request, Sequence, Timings
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_cli.step_plan import ScheduledChunk

BLOCK_TOKENS = 4


def make_sequence(name: str, num_tokens: int, adapter_slot: int | None, first_block: int) -> Sequence:
    request = Request(id=name, line=1, prompt_token_ids=tuple(range(num_tokens)))
    tokens = [100 * first_block + i for i in range(num_tokens)]
    sequence = Sequence(request, Timings(0.0), tokens, num_tokens, max_output_tokens=8)
    sequence.adapter_slot = adapter_slot
    sequence.block_table = [first_block + 7 * i for i in range(6)]
    return sequence


def test_chunks_of_one_adapter_are_neighbours_and_the_base_comes_last() -> None:
    plain = make_sequence("plain", 5, None, 1)
    first, second = make_sequence("first", 9, 3, 2), make_sequence("second", 2, 3, 3)
    other = make_sequence("other", 6, 0, 4)
    batch = StepBatch.build(
        [
            ScheduledChunk(plain, 2, 3, True),
            ScheduledChunk(first, 4, 4, False),
            ScheduledChunk(other, 5, 1, True),
            ScheduledChunk(second, 0, 2, True),
        ],
        BLOCK_TOKENS,
        {},
    )
    assert [chunk.sequence.request.id for chunk in batch.chunks] == ["other", "first", "second", "plain"]
    assert batch.segments.tolist() == [[0, 0, 1], [3, 1, 6]]
    assert batch.first_tokens.tolist() == [0, 1, 5, 7, 10]
    assert batch.token_ids.tolist() == [405, 204, 205, 206, 207, 300, 301, 102, 103, 104]
    assert batch.positions.tolist() == [5, 4, 5, 6, 7, 0, 1, 2, 3, 4]
    assert batch.context_lens.tolist() == [6, 8, 2, 5]
    assert batch.last_tokens.tolist() == [0, 6, 9]
    assert not batch.is_decode
    expected_slots = [
        chunk.sequence.block_table[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
        for chunk in batch.chunks
        for position in range(chunk.start, chunk.start + chunk.num_tokens)
    ]
    assert batch.slot_mapping.tolist() == expected_slots
    assert batch.block_tables.tolist() == [chunk.sequence.block_table for chunk in batch.chunks]
    plain.block_table = plain.block_table[:4]
    shorter = StepBatch.build([ScheduledChunk(first, 4, 4, False), ScheduledChunk(plain, 2, 3, True)], 4, {})
    assert shorter.block_tables.tolist() == [first.block_table, [*plain.block_table, 0, 0]]


def test_who_follows_needs_no_sequences() -> None:
    sequence = make_sequence("first", 9, 3, 2)
    batch = StepBatch.build([ScheduledChunk(sequence, 4, 5, True)], BLOCK_TOKENS, {})
    followed: StepBatch = pickle.loads(pickle.dumps(batch.for_followers()))
    assert followed.chunks == ()
    assert followed.num_sequences == 1
    for field in ("token_ids", "positions", "slot_mapping", "block_tables", "last_tokens", "segments"):
        assert np.array_equal(getattr(followed, field), getattr(batch, field)), field


def test_pending_tokens_come_from_the_last_steps_rows() -> None:
    known, pending = make_sequence("known", 3, None, 1), make_sequence("pending", 3, 2, 2)
    pending.num_pending_tokens = 1
    batch = StepBatch.build(
        [ScheduledChunk(known, 2, 1, True), ScheduledChunk(pending, 3, 1, True)],
        BLOCK_TOKENS,
        {id(pending): 9},
    )
    assert batch.is_decode
    assert batch.feed_rows.tolist() == [9, 0]
    assert batch.token_ids.tolist() == [0, 102]
    assert batch.positions.tolist() == [3, 2]


@pytest.mark.parametrize("adapter_slot", [None, 4])
def test_one_adapter_or_none(adapter_slot: int | None) -> None:
    sequences = [make_sequence(str(i), 4, adapter_slot, i) for i in range(3)]
    batch = StepBatch.build([ScheduledChunk(s, 0, 4, True) for s in sequences], BLOCK_TOKENS, {})
    assert batch.segments.tolist() == ([] if adapter_slot is None else [[4, 0, 12]])
    assert batch.segments.shape == (len(batch.segments), 3)
