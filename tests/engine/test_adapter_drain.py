"""Whose room blocked requests get, who may pass them, and that they wait no longer than promised."""

from __future__ import annotations

import random
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.core import Sequence
from caraserve_cli.engine.adapter_drain import DRAIN_STRETCH, AdapterDrain, AdapterUse
from caraserve_cli.engine.residency import AdapterResidency
from tests.engine.planning import UNIT, add, chunks_of, make_adapter, make_scheduler, run_step

LONG = 10_000


class Pool:
    """100 units of adapters, all in use, and a drain over them; who uses them is made up."""

    def __init__(self, sizes: dict[str, int], uses: dict[str, AdapterUse], max_adapters: int = 999) -> None:
        self.residency = AdapterResidency(100 * UNIT, max_adapters)
        for name, num_units in sizes.items():
            self.residency.acquire(make_adapter(name, num_units))
        self.uses = uses
        self.drain = AdapterDrain(self.residency, lambda: self.uses)

    def plan(self, *blocked: tuple[str, int]) -> str:
        """Names of the adapters that are closed to a long request after a plan with these blocked."""
        self.drain.begin_plan()
        for name, num_units in blocked:
            self.drain.block(make_adapter(name, num_units))
        self.drain.end_plan()
        closed = [name for name in self.residency if not self.drain.may_pass(name, LONG)]
        return "".join(sorted(closed))


def test_those_that_end_soonest_are_closed_and_no_more_than_needed() -> None:
    pool = Pool(
        {"a": 30, "b": 30, "c": 40}, {"a": AdapterUse(0, 9), "b": AdapterUse(5, 2), "c": AdapterUse(0, 5)}
    )
    assert pool.plan() == ""
    assert pool.plan(("n", 30)) == "b"
    assert pool.plan(("n", 30)) == "b"
    assert pool.plan() == ""
    assert pool.plan(("n", 40)) == "c", "b would not do, and is not needed beside c"
    assert pool.plan() == ""
    assert pool.plan(("n", 100)) == "abc"


def test_of_equals_those_are_closed_for_whose_room_the_fewest_wait() -> None:
    pool = Pool(
        {"a": 10, "b": 10, "c": 80}, {"a": AdapterUse(1, 7), "b": AdapterUse(2, 7), "c": AdapterUse(4, 7)}
    )
    assert pool.plan(("n", 10)) == "c", "four for 80 units"
    pool = Pool({"a": 50, "b": 50}, {"a": AdapterUse(1, 7), "b": AdapterUse(0, 7)})
    assert pool.plan(("n", 10)) == "b"


def test_what_is_free_or_unused_is_room_that_nobody_takes_again() -> None:
    pool = Pool({"a": 40, "b": 30, "c": 20}, {"a": AdapterUse(0, 3), "b": AdapterUse(0, 2)})
    pool.residency.release("c")
    assert pool.plan(("n", 10)) == "", "10 units are free"
    assert pool.plan(("n", 30)) == "c"
    assert pool.plan(("n", 50)) == "bc"


def test_who_is_closed_stays_closed_whatever_others_do() -> None:
    pool = Pool({"a": 50, "b": 50}, {"a": AdapterUse(0, 8), "b": AdapterUse(0, 9)})
    assert pool.plan(("n", 20)) == "a"
    pool.uses = {"a": AdapterUse(99, 900), "b": AdapterUse(0, 1)}
    for _ in range(20):
        assert pool.plan(("n", 20)) == "a"
    pool.residency.release("a")
    assert pool.plan(("n", 20)) == "a", "not even when it is unused"


def test_who_ends_in_time_may_join() -> None:
    pool = Pool({"a": 100}, {"a": AdapterUse(1, 8)})
    last_plan = int(DRAIN_STRETCH * 8)
    for plan in range(2 * last_plan):
        pool.plan(("n", 20))
        for num_steps in range(1, 2 * last_plan):
            assert pool.drain.may_pass("a", num_steps) == (plan + num_steps <= last_plan)


def test_room_is_made_for_some_at_a_time_in_the_order_of_arrival() -> None:
    uses = {name: AdapterUse(0, steps) for steps, name in enumerate("abcdefghij")}
    pool = Pool(dict.fromkeys(uses, 10), uses)
    assert pool.plan(("n", 10), ("n", 10)) == "a", "the same adapter twice"
    assert pool.plan(("n", 10), ("o", 10)) == "ab"
    assert pool.plan(("n", 10), ("o", 20), ("p", 10)) == "a", "o is more than a quarter, p is behind it"
    assert pool.plan(("l", 60), ("o", 1)) == "abcdef", "the first one is made room for, however large"


def test_who_was_closed_last_is_opened_first() -> None:
    pool = Pool(
        {"a": 10, "b": 10, "c": 80}, {"a": AdapterUse(0, 1), "b": AdapterUse(0, 2), "c": AdapterUse(0, 3)}
    )
    assert pool.plan(("n", 10), ("o", 10)) == "ab"
    assert pool.plan(("n", 10)) == "a"
    pool.residency.release("a")
    pool.residency.acquire(make_adapter("n", 10))
    pool.uses["n"] = AdapterUse(0, 4)
    assert pool.plan(("o", 10), ("p", 10)) == "bc"


def test_slots_are_room_too() -> None:
    uses = {"a": AdapterUse(0, 2), "b": AdapterUse(0, 1), "c": AdapterUse(0, 3)}
    pool = Pool(dict.fromkeys(uses, 10), uses, max_adapters=3)
    assert pool.plan(("n", 10)) == "b"
    assert pool.plan(("n", 10), ("o", 10)) == "b", "more than a quarter of the slots"
    pool = Pool(dict.fromkeys(uses, 10), uses, max_adapters=4)
    assert pool.plan(("n", 10)) == ""


def test_a_closed_adapter_lets_in_who_waits_for_it_and_all_others_pass() -> None:
    scheduler = make_scheduler(max_running=200, max_batch_tokens=1000, num_kv_blocks=2000)
    short, other, wanted = make_adapter("short", 40), make_adapter("other", 60), make_adapter("wanted", 30)
    add(scheduler, "1", 2, max_tokens=4, adapter=short)
    add(scheduler, "2", 2, max_tokens=20, adapter=other)
    blocked = add(scheduler, "blocked", 2, max_tokens=4, adapter=wanted)
    behind = add(scheduler, "behind", 2, max_tokens=4, adapter=make_adapter("small", 1))
    passing = {f"passing {number}" for number in range(150)}
    for name in passing:
        add(scheduler, name, 2, max_tokens=20, adapter=other)
    add(scheduler, "joins", 2, max_tokens=5, adapter=short)
    late = add(scheduler, "late", 2, max_tokens=9, adapter=short)
    # `late` is the longest that asks for `short`, so it may join, and the drain ends with it at the latest.
    assert set(chunks_of(run_step(scheduler))) == {"1", "2", "joins", "late", *passing}
    scheduler.finish(late)
    longer = add(scheduler, "longer", 2, max_tokens=12, adapter=short)
    for _ in range(4):
        assert blocked in scheduler.waiting
        run_step(scheduler)
    assert chunks_of(run_step(scheduler))["blocked"] == (0, 2), "as soon as `short` has no users"
    assert longer in scheduler.waiting, "it would have ended too late"
    assert behind not in scheduler.waiting
    scheduler.check_integrity()


def test_who_was_preempted_comes_back_before_those_it_arrived_before() -> None:
    """Its adapter is closed for one behind it, which binds only those behind that one."""
    scheduler = make_scheduler(num_kv_blocks=5, max_running=4)
    used, wanted = make_adapter("used", 80), make_adapter("wanted", 80)
    add(scheduler, "base", 4, max_tokens=9)
    young = add(scheduler, "young", 7, max_tokens=9, adapter=used)
    blocked = add(scheduler, "blocked", 2, adapter=wanted)
    while not young.num_preemptions:
        run_step(scheduler)
    late = add(scheduler, "late", 2, max_tokens=18, adapter=used)
    while young in scheduler.waiting:
        assert blocked in scheduler.waiting
        run_step(scheduler)
    assert blocked in scheduler.waiting
    while blocked in scheduler.waiting:
        run_step(scheduler)
    assert late in scheduler.waiting


@settings(max_examples=150, deadline=None)
@given(
    rng=st.randoms(use_true_random=False),
    sizes=st.lists(st.integers(1, 100), min_size=1, max_size=8),
    num_requests=st.integers(1, 150),
    mean_gap_steps=st.floats(0, 2),
    longest=st.integers(1, 12),
    max_running=st.integers(1, 8),
    max_adapters=st.integers(1, 6),
    chunk=st.sampled_from([4, 512]),
)
def test_the_first_who_is_blocked_waits_no_longer_than_promised(
    rng: random.Random,
    sizes: list[int],
    num_requests: int,
    mean_gap_steps: float,
    longest: int,
    max_running: int,
    max_adapters: int,
    chunk: int,
) -> None:
    """Any arrivals, sizes, favourites and answers, with cache and tokens for all that run."""
    scheduler = make_scheduler(
        max_running=max_running,
        max_batch_tokens=max_running * chunk,
        prefill_chunk_tokens=chunk,
        max_resident_adapters=max_adapters,
        num_kv_blocks=16 * max_running,
    )
    infos = [None, *(make_adapter(str(number), size) for number, size in enumerate(sizes))]
    weights = [rng.random() ** 2 for _ in infos]
    num_outputs: dict[Sequence, int] = {}
    most_steps = num_waited = 0
    next_arrival = 0.0
    for step in count():
        while len(num_outputs) < num_requests and next_arrival <= step:
            num_prompt, most = rng.randint(1, 12), rng.randint(1, longest)
            info = rng.choices(infos, weights)[0]
            sequence = add(scheduler, str(len(num_outputs)), num_prompt, most, info)
            num_outputs[sequence] = rng.randint(1, most)
            most_steps = max(most_steps, -(-num_prompt // chunk) + most - 1)
            next_arrival += 2 * mean_gap_steps * rng.random()
        if not scheduler.has_work and len(num_outputs) == num_requests:
            break
        first = scheduler.waiting[0] if scheduler.waiting else None
        had_its_turn = len(scheduler.running) < max_running
        plan = run_step(scheduler, num_outputs)
        assert plan.chunks or first is None
        assert not plan.num_preempted
        if first is not None and scheduler.waiting[:1] == [first]:
            num_waited += num_waited > 0 or had_its_turn
            assert num_waited <= int(DRAIN_STRETCH * most_steps)
        else:
            num_waited = 0
    assert all(sequence.num_output_tokens == num_outputs[sequence] for sequence in num_outputs)


def test_no_room_is_expected_where_an_older_request_stays_long() -> None:
    """What was closed for one request is used by another, older than the next that is blocked, which then
    must not wait for it while others join the adapter that would end soon."""
    scheduler = make_scheduler(
        max_running=64, max_batch_tokens=1000, num_kv_blocks=1000, max_context_tokens=2000
    )
    adapters = {name: make_adapter(name, 50) for name in "xybc"}
    for name in "xy":
        add(scheduler, f"{name}1", 4, max_tokens=3, adapter=adapters[name])
    run_step(scheduler)
    add(scheduler, "b1", 4, max_tokens=3, adapter=adapters["b"])
    run_step(scheduler)
    add(scheduler, "x2", 4, max_tokens=1000, adapter=adapters["x"])
    blocked = add(scheduler, "c1", 4, max_tokens=3, adapter=adapters["c"])
    num_steps = 0
    while blocked in scheduler.waiting:
        add(scheduler, f"b{num_steps + 2}", 4, max_tokens=3, adapter=adapters["b"])
        run_step(scheduler)
        num_steps += 1
        assert num_steps < 10


def test_the_batch_is_filled_while_two_adapters_take_turns() -> None:
    """Each alone fills the pool; no turn is so short that only the first of many requests uses it."""
    scheduler = make_scheduler(max_running=16, max_batch_tokens=200, num_kv_blocks=999)
    adapters = [make_adapter("even", 100), make_adapter("odd", 100)]
    for number in range(400):
        add(scheduler, str(number), 3, 1 + number % 9, adapters[number % 2])
    num_running: list[int] = []
    while scheduler.waiting:
        num_running.append(len(run_step(scheduler).chunks))
    assert sum(num_running) / len(num_running) > 10
