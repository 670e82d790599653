"""The queue is ordered once a plan, whoever asks first, and not where nothing has changed."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from caraserve_cli.core import Sequence
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.engine.scheduling import FirstComeFirstServed
from tests.engine.planning import add, make_adapter, make_scheduler, run_step


class LastComeFirstServed(FirstComeFirstServed):
    """Starves the others, and counts how often it is asked."""

    def __init__(self) -> None:
        self.num_orders = 0

    def order(self, waiting: SequenceOf[Sequence]) -> list[Sequence]:
        self.num_orders += 1
        return list(waiting)[::-1]


def start(**changes: int) -> tuple[Scheduler, LastComeFirstServed]:
    scheduler, policy = make_scheduler(**changes), LastComeFirstServed()
    scheduler.use_policy(policy)
    return scheduler, policy


def test_looking_ahead_and_planning_share_an_order() -> None:
    scheduler, policy = start(max_running=2)
    for name in "abcd":
        add(scheduler, name, 3, adapter=make_adapter(name, 1))
    assert scheduler.wanted_adapters() == ["d", "c", "b", "a"]
    plan = run_step(scheduler)
    assert [chunk.sequence.request.id for chunk in plan.chunks] == ["d", "c"]
    assert policy.num_orders == 1


def test_a_full_batch_asks_for_no_order_until_somebody_comes() -> None:
    scheduler, policy = start(max_running=2)
    for name in "abcd":
        add(scheduler, name, 3, max_tokens=9, adapter=make_adapter(name, 1))
    run_step(scheduler)
    for _ in range(5):
        assert scheduler.wanted_adapters() == ["b", "a"], "without those who were admitted"
        run_step(scheduler)
    assert policy.num_orders == 1
    add(scheduler, "e", 3, adapter=make_adapter("e", 1))
    assert scheduler.wanted_adapters() == ["e", "b", "a"]
    assert policy.num_orders == 2


def test_an_order_is_used_for_one_plan_only() -> None:
    """Time goes on between two plans, and with it a policy's mind."""
    scheduler, policy = start(num_kv_blocks=4)
    for name in "abc":
        add(scheduler, name, 12)
    for plans in range(1, 4):
        run_step(scheduler)
        assert policy.num_orders == plans
        scheduler.wanted_adapters()


def test_who_was_preempted_is_ordered_again() -> None:
    scheduler, policy = start(num_kv_blocks=6, max_batch_tokens=32)
    sequences = [add(scheduler, name, 7, max_tokens=12, adapter=make_adapter(name, 1)) for name in "ab"]
    while not any(each.num_preemptions for each in sequences):
        run_step(scheduler)
    before = policy.num_orders
    preempted = next(each for each in sequences if each.num_preemptions)
    assert preempted in scheduler.waiting
    scheduler.residency.discard(str(preempted.request.adapter))
    assert scheduler.wanted_adapters() == [preempted.request.adapter]
    assert policy.num_orders == before + 1
