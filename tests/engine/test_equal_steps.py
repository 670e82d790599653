"""Booking equal decode steps at once is the same as planning and committing them one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.core import Sequence, SequenceStatus
from caraserve_cli.engine.scheduler import Scheduler
from tests.engine.planning import add, make_adapter, make_scheduler, run_step


def _finish_ended(scheduler: Scheduler) -> None:
    for sequence in list(scheduler.ending):
        scheduler.finish(sequence)


def _state(scheduler: Scheduler, sequences: list[Sequence]) -> object:
    """All that later plans depend on, but for which blocks are whose."""
    return (
        scheduler.blocks.num_free,
        [each.request.id for each in scheduler.running],
        [each.request.id for each in scheduler.waiting],
        [
            (
                each.status,
                each.num_computed_tokens,
                each.token_ids,
                each.num_pending_tokens,
                len(each.block_table),
                each.num_findable_blocks,
            )
            for each in sequences
        ],
    )


def _begun(lengths: list[tuple[int, int]], num_blocks: int) -> tuple[Scheduler, list[Sequence]]:
    """A scheduler whose first plans are done: as many as prompts take."""
    scheduler = make_scheduler(num_kv_blocks=num_blocks, max_running=4)
    adapter = make_adapter("a")
    sequences = [
        add(scheduler, f"{number}", prompt, output, adapter if number % 2 else None)
        for number, (prompt, output) in enumerate(lengths)
    ]
    for _ in range(3):
        run_step(scheduler)
    return scheduler, sequences


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=7),
    st.integers(10, 40),
    st.integers(1, 30),
)
def test_booking_equals_rounds_of_plan_and_commit(
    lengths: list[tuple[int, int]], num_blocks: int, most_steps: int
) -> None:
    at_once, booked = _begun(lengths, num_blocks)
    one_by_one, planned = _begun(lengths, num_blocks)
    num_steps = at_once.equal_steps.num_next(most_steps)
    if not num_steps:
        return
    at_once.equal_steps.book(num_steps, token_id=7)
    _finish_ended(at_once)
    at_once.check_integrity()
    before = list(one_by_one.running)
    for _ in range(num_steps):
        plan = run_step(one_by_one)
        assert [chunk.sequence for chunk in plan.chunks] == before
        assert all(chunk.num_tokens == 1 and chunk.yields_token for chunk in plan.chunks)
    assert _state(at_once, booked) == _state(one_by_one, planned)
    for _ in range(200):  # and so is all that comes later
        run_step(at_once)
        run_step(one_by_one)
        assert _state(at_once, booked) == _state(one_by_one, planned)
    assert all(each.status is SequenceStatus.FINISHED for each in booked)


def test_as_many_steps_as_until_the_first_end() -> None:
    scheduler, _ = _begun([(4, 9), (4, 20)], 40)
    assert scheduler.equal_steps.num_next(100) == 6  # 3 of 9 are there
    assert scheduler.equal_steps.num_next(5) == 5


def test_as_many_steps_as_there_are_blocks_for() -> None:
    scheduler, sequences = _begun([(4, 50)], 4)
    num_steps = scheduler.equal_steps.num_next(100)
    assert sequences[0].num_computed_tokens + num_steps == 16
    scheduler.equal_steps.book(num_steps)
    assert scheduler.equal_steps.num_next(100) == 0
    scheduler.check_integrity()


@pytest.mark.parametrize("prompt", [4, 30])
def test_none_while_a_prompt_is_computed_or_waits(prompt: int) -> None:
    scheduler, _ = _begun([(4, 20)], 40)
    add(scheduler, "late", prompt, 8)
    assert scheduler.equal_steps.num_next(100) == 0
    run_step(scheduler)
    assert bool(scheduler.equal_steps.num_next(100)) is (prompt == 4)


def test_the_last_token_of_a_prompt_is_no_decode() -> None:
    """Nine tokens in chunks of eight."""
    scheduler = make_scheduler()
    add(scheduler, "a", 9, 5)
    run_step(scheduler)
    assert scheduler.equal_steps.num_next(100) == 0
    run_step(scheduler)
    assert scheduler.equal_steps.num_next(100) == 4


def test_who_waits_for_a_place_in_a_full_batch_changes_nothing() -> None:
    scheduler, _ = _begun([(4, 20)] * 5, 40)
    assert [each.request.id for each in scheduler.waiting] == ["4"]
    assert scheduler.equal_steps.num_next(100) == 17
    scheduler.equal_steps.book(17)
    _finish_ended(scheduler)
    assert len(run_step(scheduler).chunks) == 1


def test_nothing_runs() -> None:
    assert make_scheduler().equal_steps.num_next(100) == 0
