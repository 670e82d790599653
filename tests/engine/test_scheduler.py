"""Who is computed when, who waits, who is preempted."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.core import ColdStart, SequenceStatus
from caraserve_cli.step_plan import AdapterEviction, AdapterLoad, AdapterMove
from tests.engine.planning import UNIT, add, chunks_of, make_adapter, make_scheduler, run_step


def test_prompts_are_computed_in_chunks_beside_decoding() -> None:
    scheduler = make_scheduler()
    add(scheduler, "short", 3)
    assert chunks_of(run_step(scheduler)) == {"short": (0, 3)}
    add(scheduler, "long", 20)
    assert chunks_of(run_step(scheduler)) == {"short": (3, 1), "long": (0, 8)}
    assert chunks_of(run_step(scheduler)) == {"short": (4, 1), "long": (8, 8)}
    assert chunks_of(run_step(scheduler)) == {"short": (5, 1), "long": (16, 4)}
    assert chunks_of(run_step(scheduler)) == {"long": (20, 1)}


def test_a_step_never_exceeds_its_token_budget() -> None:
    scheduler = make_scheduler(max_batch_tokens=10)
    for name in "abc":
        add(scheduler, name, 7)
    assert chunks_of(run_step(scheduler)) == {"a": (0, 7), "b": (0, 3)}


def test_who_ends_after_it_was_preempted_is_not_planned_again() -> None:
    scheduler = make_scheduler(num_kv_blocks=4)
    old, young = add(scheduler, "old", 8, max_tokens=8), add(scheduler, "young", 7, max_tokens=4)
    run_step(scheduler)
    plan = scheduler.plan()
    assert plan.num_preempted == 1
    scheduler.commit(plan)
    scheduler.look_ahead()
    for sequence in (old, young):  # their tokens under way were their last ones
        scheduler.finish(sequence)
    assert not scheduler.plan().chunks


def test_those_that_wait_are_hashed_before_their_turn() -> None:
    scheduler = make_scheduler(max_batch_tokens=8)
    for name in "ab":
        add(scheduler, name, 8)
    run_step(scheduler)
    waiting = scheduler.waiting[0]
    assert not waiting.block_hashes
    scheduler.look_ahead()
    assert len(waiting.block_hashes) == 1, "its second block is not full before its last token"


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    scheduler = make_scheduler(num_kv_blocks=4)
    old = add(scheduler, "old", 8, max_tokens=8)
    young = add(scheduler, "young", 7, max_tokens=4)
    run_step(scheduler)
    add(scheduler, "late", 4)
    plan = run_step(scheduler)  # old needs its third block
    assert chunks_of(plan) == {"old": (8, 1)}
    assert plan.num_preempted == 1
    assert [s.request.id for s in scheduler.waiting] == ["young", "late"]
    assert young.token_ids[-1] == 7, "what was generated is kept"
    while young.num_output_tokens < 4:
        run_step(scheduler)
    assert old.num_preemptions == 0
    assert young.num_preemptions == 1


def test_a_prompt_seen_before_is_not_computed_again() -> None:
    scheduler = make_scheduler()
    prompt = list(range(11))
    add(scheduler, "first", 11, max_tokens=1, prompt=prompt)
    run_step(scheduler)
    run_step(scheduler)
    second = add(scheduler, "second", 11, max_tokens=1, prompt=prompt)
    plan = run_step(scheduler)
    assert chunks_of(plan) == {"second": (8, 3)}, "two full blocks are shared, the last token is computed"
    assert second.num_cached_tokens == plan.num_cached_tokens == 8


def test_prefixes_are_not_shared_between_adapters() -> None:
    scheduler = make_scheduler()
    prompt = list(range(9))
    add(scheduler, "base", 9, max_tokens=1, prompt=prompt)
    run_step(scheduler)
    run_step(scheduler)
    add(scheduler, "other", 9, max_tokens=1, adapter=make_adapter("x"), prompt=prompt)
    assert chunks_of(run_step(scheduler)) == {"other": (0, 8)}


def test_adapters_are_loaded_once_and_evicted_when_room_is_needed() -> None:
    scheduler = make_scheduler()
    a, b, c = make_adapter("a"), make_adapter("b"), make_adapter("c")
    first = add(scheduler, "1", 2, max_tokens=1, adapter=a)
    again = add(scheduler, "2", 2, max_tokens=1, adapter=a)
    add(scheduler, "3", 2, max_tokens=2, adapter=b)
    plan = run_step(scheduler)
    assert plan.pool_ops == (AdapterLoad("a", 0, 0), AdapterLoad("b", 1, 40 * UNIT))
    assert plan.num_adapter_loads == 2
    assert (first.cold_start, again.cold_start) == (ColdStart.STREAM, ColdStart.STREAM), "on its way for both"
    add(scheduler, "4", 2, max_tokens=1, adapter=c)
    plan = run_step(scheduler)
    assert plan.pool_ops == (AdapterEviction(0), AdapterLoad("c", 0, 0)), "a is unused, b is in use"


def test_a_later_load_may_move_what_an_earlier_one_of_the_plan_brought() -> None:
    scheduler = make_scheduler()
    add(scheduler, "1", 2, max_tokens=1, adapter=make_adapter("left", 30))
    add(scheduler, "2", 2, max_tokens=9, adapter=make_adapter("stays", 40))
    run_step(scheduler)
    add(scheduler, "3", 2, max_tokens=9, adapter=make_adapter("new", 20))
    add(scheduler, "4", 2, max_tokens=9, adapter=make_adapter("newer", 40))
    assert run_step(scheduler).pool_ops == (
        AdapterLoad("new", 2, 70 * UNIT),
        AdapterEviction(0),
        AdapterMove(1, 30 * UNIT, 0, 40 * UNIT),
        AdapterMove(2, 70 * UNIT, 40 * UNIT, 20 * UNIT),
        AdapterLoad("newer", 0, 60 * UNIT),
    )


def test_the_adapter_of_a_waiting_request_is_kept_if_another_can_leave() -> None:
    scheduler = make_scheduler(max_running=2)
    wanted, unwanted, new = make_adapter("wanted"), make_adapter("unwanted"), make_adapter("new")
    add(scheduler, "1", 2, max_tokens=1, adapter=wanted)
    add(scheduler, "2", 2, max_tokens=1, adapter=unwanted)
    run_step(scheduler)
    add(scheduler, "3", 2, max_tokens=2)
    add(scheduler, "4", 2, max_tokens=2, adapter=new)
    waiting = add(scheduler, "5", 2, max_tokens=1, adapter=wanted)
    assert run_step(scheduler).pool_ops == (AdapterEviction(1), AdapterLoad("new", 1, 40 * UNIT))
    scheduler.finish(waiting)
    scheduler.check_integrity()


def test_whose_last_token_is_under_way_holds_nothing_any_more() -> None:
    """The next one is planned while the last step of the one before it is computed."""
    scheduler = make_scheduler(num_kv_blocks=2, adapter_memory_bytes=40 * UNIT, max_running=1)
    first = add(scheduler, "first", 7, max_tokens=2, adapter=make_adapter("a"))
    second = add(scheduler, "second", 7, max_tokens=2, adapter=make_adapter("b"))
    run_step(scheduler)
    scheduler.commit(scheduler.plan())  # the last token of the first is not known yet
    assert first.status is SequenceStatus.ENDING
    assert scheduler.num_unfinished == 2
    plan = scheduler.plan()
    assert chunks_of(plan) == {"second": (0, 7)}
    assert [type(op) for op in plan.pool_ops] == [AdapterEviction, AdapterLoad]
    scheduler.check_integrity()
    scheduler.finish(first)
    assert first.status is SequenceStatus.FINISHED
    assert scheduler.running == [second]
    scheduler.check_integrity()


def test_whoever_needs_no_load_may_pass() -> None:
    scheduler = make_scheduler()
    big, other = make_adapter("big", 80), make_adapter("other", 80)
    add(scheduler, "1", 2, max_tokens=9, adapter=big)
    add(scheduler, "2", 2, adapter=other)
    add(scheduler, "3", 2)
    add(scheduler, "4", 2, adapter=big)
    assert list(chunks_of(run_step(scheduler))) == ["1", "3", "4"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 12), st.sampled_from([None, "a", "b", "c", "d"])),
        min_size=1,
        max_size=25,
    ),
    st.integers(8, 20),
    st.sampled_from([1, 7, 512]),
    st.integers(1, 4),
    st.booleans(),
)
def test_everyone_is_answered_in_full(
    requests: list[tuple[int, int, str | None]],
    num_blocks: int,
    chunk: int,
    most_adapters: int,
    caching: bool,
) -> None:
    """Any mix, with too few blocks, slots and bytes for adapters: no deadlock, no lost token."""
    scheduler = make_scheduler(
        num_kv_blocks=num_blocks, prefill_chunk_tokens=chunk, max_resident_adapters=most_adapters
    )
    adapters = {name: make_adapter(name, 30 + 20 * i) for i, name in enumerate("abcd")}
    sequences = []
    for i, (num_prompt, max_tokens, name) in enumerate(requests):
        adapter = adapters[name] if name else None
        sequence = add(scheduler, str(i), num_prompt, max_tokens, adapter, prompt=[3] * num_prompt)
        if not caching:
            sequence.prefix_root = None
        sequences.append(sequence)
    num_steps = 0
    while scheduler.has_work:
        assert run_step(scheduler).chunks, "a step that computes nothing never ends"
        num_steps += 1
        assert num_steps < 5000
    assert [s.num_output_tokens for s in sequences] == [max_tokens for _, max_tokens, _ in requests]
    assert scheduler.blocks.num_used == 0
