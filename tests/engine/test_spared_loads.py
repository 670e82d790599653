"""Sequences that end with their next token and whose adapters CPU workers are lent: nothing is loaded for
them while nobody else wants the adapter."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caraserve_cli.coldstart.arrival import Arrival, Decision
from caraserve_cli.core import ColdStart, Sequence, SequenceStatus
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.step_plan import AdapterLoad, AdapterLoan, StepPlan
from tests.engine.depots import HandDepot
from tests.engine.planning import add, chunks_of, make_adapter, make_scheduler, run_step

NUM_LAYERS = 1
ADAPTER = make_adapter("a")


class SpareOr:
    """Loads nothing where that may be; other arrivals come by one decision."""

    name = "spare-or"

    def __init__(self, otherwise: Decision, beside_ms: float) -> None:
        self._otherwise, self._beside_ms = otherwise, beside_ms
        self.arrivals: list[Arrival] = []

    def decide(self, arrival: Arrival) -> Decision:
        self.arrivals.append(arrival)
        if not arrival.may_spare_load:
            return self._otherwise
        return Decision(ColdStart.CPU_ASSIST, arrival.num_layers, beside_ms=self._beside_ms, spares_load=True)


def make(
    otherwise: ColdStart = ColdStart.STREAM, *, beside_ms: float = 0.0, **changes: int
) -> tuple[Scheduler, HandDepot, SpareOr]:
    scheduler, depot = make_scheduler(**changes), HandDepot()
    policy = SpareOr(Decision(otherwise), beside_ms)
    scheduler.cold_starts.supply, scheduler.cold_starts.policy = depot, policy
    return scheduler, depot, policy


def lent(plan: StepPlan) -> dict[str, int | None]:
    return {chunk.sequence.request.id: chunk.lent_slot for chunk in (*plan.chunks, *plan.beside)}


def end(scheduler: Scheduler, sequence: Sequence) -> None:
    """Its token is taken."""
    sequence.num_pending_tokens -= 1
    sequence.token_ids.append(7)
    scheduler.finish(sequence)
    scheduler.check_integrity()


def launch(scheduler: Scheduler) -> StepPlan:
    """Plan and commit; no token is taken."""
    plan = scheduler.plan()
    scheduler.commit(plan)
    scheduler.check_integrity()
    return plan


def test_nothing_of_the_device_is_taken() -> None:
    scheduler, _, _ = make()
    cold = add(scheduler, "cold", 3, max_tokens=1, adapter=ADAPTER)
    plan = launch(scheduler)
    (chunk,) = plan.chunks
    assert (chunk.num_tokens, chunk.cpu_layers, chunk.yields_token) == (3, NUM_LAYERS, True)
    assert plan.loans == (AdapterLoan("a", chunk.lent_slot),)
    assert chunk.lent_slot >= scheduler.residency.max_adapters
    assert not plan.pool_ops
    assert scheduler.residency.used_bytes == 0
    assert not scheduler.cold_starts.under_way
    scheduler.check(chunk, in_time=True)
    end(scheduler, cold)
    assert (cold.cold_start, cold.timings.load) == (ColdStart.CPU_ASSIST, None)


def test_a_long_prompt_is_lent_its_adapter_chunk_by_chunk() -> None:
    """Of 8 tokens at most; the last one has one token, as decoding has."""
    scheduler, _, _ = make()
    cold = add(scheduler, "cold", 17, max_tokens=1, adapter=ADAPTER)
    for expected in ((0, 8), (8, 8), (16, 1)):
        plan = launch(scheduler)
        assert chunks_of(plan) == {"cold": expected}
        assert [loan.adapter for loan in plan.loans] == ["a"]
        assert scheduler.load(plan.chunks).is_assisted
        assert not launch(scheduler).chunks, "it is not known yet whether they were in time"
        scheduler.check(plan.chunks[0], in_time=True)
        assert scheduler.equal_steps.num_next(10) == 0
    end(scheduler, cold)


@pytest.mark.parametrize("others", ["waits", "runs", "is lent it", "has loaded it"])
def test_an_adapter_that_somebody_else_wants_is_loaded(others: str) -> None:
    scheduler, depot, policy = make()
    depot.arrived = {0}
    if others != "waits":
        before = add(scheduler, "before", 3, 1 if others == "is lent it" else 3, adapter=ADAPTER)
        launch(scheduler)
        assert scheduler.cold_starts.is_spared(before) == (others == "is lent it")
        if others == "has loaded it":
            scheduler.finish(before)
    add(scheduler, "cold", 3, max_tokens=1, adapter=ADAPTER)
    if others == "waits":
        add(scheduler, "too", 3, max_tokens=5, adapter=ADAPTER)
    plan = launch(scheduler)
    assert lent(plan)["cold"] is None
    assert scheduler.residency.is_resident("a")
    assert plan.num_adapter_loads == (others in ("waits", "is lent it"))
    assert not policy.arrivals[-1].may_spare_load


@pytest.mark.parametrize(("max_tokens", "may"), [(1, True), (2, False)])
def test_who_goes_on_needs_it(max_tokens: int, may: bool) -> None:
    scheduler, _, policy = make()
    add(scheduler, "cold", 3, max_tokens, adapter=ADAPTER)
    launch(scheduler)
    assert [each.may_spare_load for each in policy.arrivals] == [may]


def test_who_was_preempted_before_its_last_token() -> None:
    """Its tokens so far are prompt again; its adapter has left meanwhile."""
    scheduler, depot, _ = make(num_kv_blocks=5)
    depot.arrived = {0, 1}
    older = add(scheduler, "older", 7, max_tokens=9, adapter=make_adapter("b"))
    cold = add(scheduler, "cold", 6, max_tokens=4, adapter=ADAPTER)
    while not cold.num_preemptions:
        run_step(scheduler)
    assert (cold.status, cold.num_tokens_left) == (SequenceStatus.WAITING, 1)
    scheduler.residency.discard("a")
    scheduler.finish(older)
    plan = launch(scheduler)
    assert (chunks_of(plan), len(plan.loans)) == ({"cold": (8, 1)}, 1), "the rest is in the cache"
    assert cold.cold_start is ColdStart.STREAM, "that of its first token"


def test_what_came_too_late_is_loaded_and_computed_again() -> None:
    """It waits again, in the order of arrival, for the room that it needs now."""
    scheduler, depot, _ = make()
    large = add(scheduler, "large", 3, max_tokens=4, adapter=make_adapter("b", 90))
    cold = add(scheduler, "cold", 11, max_tokens=1, adapter=ADAPTER)
    depot.arrived = {0}
    plan = launch(scheduler)
    assert lent(plan)["cold"] is not None, "there is no room for it, and it needs none"
    late = next(chunk for chunk in plan.chunks if chunk.sequence is cold)
    scheduler.check(late, in_time=True)
    plan = launch(scheduler)
    late = next(chunk for chunk in plan.chunks if chunk.sequence is cold)
    assert (late.start, late.yields_token) == (8, True)
    scheduler.check(late, in_time=False)
    scheduler.check_integrity()
    assert (cold.status, cold.num_pending_tokens, cold.num_failed_assists) == (SequenceStatus.WAITING, 0, 1)
    assert cold.num_preemptions == 0
    assert "cold" not in chunks_of(launch(scheduler)), "now there is none"
    scheduler.finish(large)
    plan = launch(scheduler)
    assert [op.how for op in plan.pool_ops if isinstance(op, AdapterLoad)] == [ColdStart.ON_DEMAND]
    assert not chunks_of(plan)
    depot.arrived = {0, 1}
    plan = launch(scheduler)
    # The first two blocks of 4 were in time, and are in the cache.
    assert (chunks_of(plan), plan.loans) == ({"cold": (8, 3)}, ())
    assert cold.cold_start is ColdStart.ON_DEMAND
    assert cold.timings.load is not None


def test_one_beside_the_others_waits_for_its_turn_and_loads_nothing_meanwhile() -> None:
    scheduler, _, _ = make(beside_ms=30.0)
    scheduler.cold_starts.lane.max_tokens = 16
    add(scheduler, "base", 3)
    run_step(scheduler)
    first = add(scheduler, "first", 3, max_tokens=1, adapter=ADAPTER)
    second = add(scheduler, "second", 3, max_tokens=1, adapter=make_adapter("b"))
    plan = scheduler.plan()
    assert [chunk.sequence for chunk in plan.beside] == [first, second]
    assert len({loan.adapter_slot for loan in plan.loans}) == 2
    scheduler.commit_beside(plan.beside)
    third = add(scheduler, "third", 3, max_tokens=1, adapter=make_adapter("c"))
    plan = scheduler.plan()
    assert (plan.beside, plan.loans, plan.pool_ops) == ((), (), ())
    assert third.status is SequenceStatus.WAITING


def test_a_lent_adapter_that_is_loaded_for_another_stays_lent() -> None:
    scheduler, _, _ = make()
    first = add(scheduler, "first", 11, max_tokens=1, adapter=ADAPTER)
    plan = launch(scheduler)
    scheduler.check(plan.chunks[0], in_time=True)
    add(scheduler, "second", 3, max_tokens=5, adapter=ADAPTER)
    plan = launch(scheduler)
    numbers = lent(plan)
    assert plan.num_adapter_loads == 1
    assert (numbers["first"] is None, numbers["second"]) == (False, None)
    (chunk,) = (each for each in plan.chunks if each.sequence is first)
    scheduler.check(chunk, in_time=True)
    end(scheduler, first)
    assert scheduler.residency.is_resident("a")
    assert replace(chunk, lent_slot=None).adapter_slot is None


def test_the_link_is_wanted_where_another_adapter_that_is_not_there_is() -> None:
    scheduler, _, policy = make()
    add(scheduler, "cold", 3, max_tokens=1, adapter=ADAPTER)
    add(scheduler, "too", 3, max_tokens=5, adapter=make_adapter("b", 10))
    launch(scheduler)
    assert [each.is_link_wanted for each in policy.arrivals] == [True, False]
