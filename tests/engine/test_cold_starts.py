"""Which sequences a plan takes while adapters are read, copied, or computed by CPU workers."""

from __future__ import annotations

import pytest

from caraserve_cli.coldstart.arrival import Arrival, Decision
from caraserve_cli.core import ColdStart, SequenceStatus
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.step_plan import AdapterLoad
from tests.engine.depots import HandDepot
from tests.engine.planning import add, chunks_of, make_adapter, make_scheduler, run_step


class Always:
    """A policy of one decision."""

    name = "always"

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.arrivals: list[Arrival] = []

    def decide(self, arrival: Arrival) -> Decision:
        self.arrivals.append(arrival)
        return self.decision


def make(decision: Decision) -> tuple[Scheduler, HandDepot]:
    scheduler, depot = make_scheduler(), HandDepot()
    scheduler.cold_starts.supply, scheduler.cold_starts.policy = depot, Always(decision)
    return scheduler, depot


def test_who_waits_for_a_disk_is_passed_and_others_go_on() -> None:
    scheduler, depot = make(Decision(ColdStart.STREAM))
    depot.ready = set()
    add(scheduler, "cold", 3, adapter=make_adapter("a"))
    add(scheduler, "base", 3)
    assert scheduler.wanted_adapters() == ["a"]
    assert set(chunks_of(run_step(scheduler))) == {"base"}
    depot.ready = {"a"}
    assert set(chunks_of(run_step(scheduler))) == {"base", "cold"}
    assert scheduler.wanted_adapters() == []


def test_on_demand_begins_to_copy_at_once_and_computes_when_all_has_arrived() -> None:
    scheduler, depot = make(Decision(ColdStart.ON_DEMAND))
    cold = add(scheduler, "cold", 3, adapter=make_adapter("a"))
    again = add(scheduler, "again", 3, adapter=make_adapter("a"))
    add(scheduler, "base", 3)
    plan = run_step(scheduler)
    assert set(chunks_of(plan)) == {"base"}
    assert plan.num_adapter_loads == 1
    assert cold.status is SequenceStatus.WAITING
    assert set(chunks_of(run_step(scheduler))) == {"base"}
    depot.arrived = {0}
    assert set(chunks_of(run_step(scheduler))) == {"base", "cold", "again"}
    assert cold.cold_start is again.cold_start is ColdStart.ON_DEMAND


def test_a_held_stream_joins_when_its_time_has_come() -> None:
    scheduler, _ = make(Decision(ColdStart.STREAM, hold_ms=5.0))
    now_ms = 0.0
    scheduler.cold_starts._clock_ms = lambda: now_ms
    add(scheduler, "cold", 3, adapter=make_adapter("a"))
    plan = run_step(scheduler)
    assert plan.num_adapter_loads == 1
    assert not plan.chunks
    now_ms = 4.9
    assert not run_step(scheduler).chunks
    now_ms = 5.0
    assert set(chunks_of(run_step(scheduler))) == {"cold"}


def test_an_assisted_prompt_decodes_only_when_it_was_in_time_and_all_has_arrived() -> None:
    scheduler, depot = make(Decision(ColdStart.CPU_ASSIST, cpu_layers=2))
    cold = add(scheduler, "cold", 3, adapter=make_adapter("a"))
    plan = run_step(scheduler)
    (chunk,) = plan.chunks
    assert chunk.cpu_layers == 2
    assert not run_step(scheduler).chunks, "not known to be in time"
    scheduler.check(chunk, in_time=True)
    assert not run_step(scheduler).chunks, "CPU workers compute prompts only"
    depot.arrived = {0}
    plan = run_step(scheduler)
    assert chunks_of(plan) == {"cold": (3, 1)}
    assert plan.chunks[0].cpu_layers == 0
    assert cold.cold_start is ColdStart.CPU_ASSIST


def test_what_came_too_late_is_computed_again_when_the_adapter_is_there() -> None:
    scheduler, depot = make(Decision(ColdStart.CPU_ASSIST, cpu_layers=2))
    adapter = make_adapter("a")
    cold = add(scheduler, "cold", 8, adapter=adapter)
    plan = scheduler.plan()
    scheduler.commit(plan)
    assert cold.num_findable_blocks == 0, "nobody may build on it yet"
    scheduler.check(plan.chunks[0], in_time=False)
    scheduler.check_integrity()
    assert (cold.num_computed_tokens, cold.num_pending_tokens, cold.num_failed_assists) == (0, 0, 1)
    assert not run_step(scheduler).chunks
    depot.arrived = {0}
    plan = run_step(scheduler)
    assert chunks_of(plan) == {"cold": (0, 8)}
    assert plan.chunks[0].cpu_layers == 0
    assert cold.num_findable_blocks == 2


def test_adapters_of_one_step_are_copied_together() -> None:
    """What is decided for the second counts the first one's bytes."""
    scheduler, _ = make(Decision(ColdStart.STREAM))
    first, second = make_adapter("a", 10), make_adapter("b", 20)
    add(scheduler, "1", 3, adapter=first)
    add(scheduler, "2", 3, adapter=second)
    run_step(scheduler)
    policy = scheduler.cold_starts.policy
    assert isinstance(policy, Always)
    asked = [(each.adapter_bytes, each.together_bytes, each.ahead_bytes) for each in policy.arrivals]
    assert asked == [(first.num_bytes, 0, 0), (second.num_bytes, first.num_bytes, 0)]


@pytest.mark.parametrize("decision", [Decision(ColdStart.STREAM, hold_ms=5.0), Decision(ColdStart.ON_DEMAND)])
def test_adapters_that_are_waited_for_are_copied_one_after_the_other(decision: Decision) -> None:
    scheduler, _ = make(decision)
    first, second = make_adapter("a", 10), make_adapter("b", 20)
    add(scheduler, "1", 3, adapter=first)
    add(scheduler, "2", 3, adapter=second)
    plan = run_step(scheduler)
    policy = scheduler.cold_starts.policy
    assert isinstance(policy, Always)
    asked = [(each.adapter_bytes, each.together_bytes, each.ahead_bytes) for each in policy.arrivals[:2]]
    assert asked == [(first.num_bytes, 0, 0), (second.num_bytes, 0, first.num_bytes)]
    loads = [op for op in plan.pool_ops if isinstance(op, AdapterLoad)]
    assert [load.is_held for load in loads] == [decision.hold_ms > 0] * 2


def test_cpu_workers_are_given_no_more_tokens_than_fit_a_step() -> None:
    """The second prompt is cut, the third one waits; who needs no worker is in the step."""
    scheduler, depot = make(Decision(ColdStart.CPU_ASSIST, 4))
    depot.most_assisted_tokens = 5
    for name in ("1", "2", "3"):
        add(scheduler, name, 4, adapter=make_adapter(name, 10))
    add(scheduler, "base", 3)
    plan = run_step(scheduler)
    assert chunks_of(plan) == {"1": (0, 4), "2": (0, 1), "base": (0, 3)}
    assert [chunk.cpu_layers for chunk in plan.chunks] == [4, 4, 0]
    for chunk in plan.chunks:
        scheduler.check(chunk, in_time=True)
    # The first one's next token is not for CPU workers: it waits for its adapter.
    assert chunks_of(run_step(scheduler)) == {"2": (1, 3), "base": (3, 1), "3": (0, 2)}


@pytest.mark.parametrize(("been_ready_ms", "waited_ms"), [(0.0, 2.0), (0.5, 1.5), (9.0, 0.0)])
def test_a_wait_for_a_disk_ends_when_the_adapter_has_been_read(
    been_ready_ms: float, waited_ms: float
) -> None:
    """Not with the step that goes on meanwhile, nor is what is there before it is waited for negative."""
    scheduler, depot = make(Decision(ColdStart.STREAM))
    now_ms = 10.0
    scheduler.cold_starts._clock_ms = lambda: now_ms
    depot.ready = set()
    cold = add(scheduler, "cold", 3, adapter=make_adapter("a"))
    add(scheduler, "base", 3)
    run_step(scheduler)
    depot.ready, depot.been_ready_ms, now_ms = {"a"}, {"a": been_ready_ms}, 12.0
    run_step(scheduler)
    assert cold.timings.disk_wait_ms == waited_ms


def test_who_is_passed_over_waits_from_plan_to_plan() -> None:
    """A disk, then the copies; who needs neither waits for nothing, and a second one joins the load."""
    scheduler, depot = make(Decision(ColdStart.ON_DEMAND))
    now_ms = 10.0
    scheduler.cold_starts._clock_ms = lambda: now_ms
    depot.ready, depot.took_ms = set(), 7.5
    cold = add(scheduler, "cold", 3, adapter=make_adapter("a"))
    base = add(scheduler, "base", 3)
    run_step(scheduler)
    depot.ready, now_ms = {"a"}, 12.0
    run_step(scheduler)
    now_ms = 15.0
    again = add(scheduler, "again", 3, adapter=make_adapter("a"))
    run_step(scheduler)
    depot.arrived, now_ms = {0}, 19.0
    assert {"cold", "again"} <= set(chunks_of(run_step(scheduler)))
    now_ms = 50.0
    late = add(scheduler, "late", 3, adapter=make_adapter("a"))
    run_step(scheduler)
    waits = [(each.timings.disk_wait_ms, each.timings.load_wait_ms) for each in (cold, again, base, late)]
    assert waits == [(2.0, 7.0), (0.0, 4.0), (0.0, 0.0), (0.0, 0.0)]
    assert cold.timings.load is again.timings.load is not None
    assert cold.timings.load.ms == 7.5
    assert base.timings.load is late.timings.load is None
    assert late.cold_start is ColdStart.RESIDENT


def test_who_finds_no_room_on_the_device_waits_for_it() -> None:
    scheduler, _ = make(Decision(ColdStart.STREAM))
    now_ms = 0.0
    scheduler.cold_starts._clock_ms = lambda: now_ms
    add(scheduler, "large", 3, max_tokens=2, adapter=make_adapter("a", 90))
    small = add(scheduler, "small", 3, adapter=make_adapter("b", 20))
    run_step(scheduler)
    now_ms = 4.0
    run_step(scheduler)
    now_ms = 9.0
    assert set(chunks_of(run_step(scheduler))) == {"small"}
    assert (small.timings.room_wait_ms, small.timings.load_wait_ms) == (9.0, 0.0)


def test_waits_end_with_the_first_token() -> None:
    """An assisted prompt's second token waits for the copies, which its first did not."""
    scheduler, depot = make(Decision(ColdStart.CPU_ASSIST, cpu_layers=2))
    now_ms = 0.0
    scheduler.cold_starts._clock_ms = lambda: now_ms
    cold = add(scheduler, "cold", 3, adapter=make_adapter("a"))
    (chunk,) = run_step(scheduler).chunks
    scheduler.check(chunk, in_time=True)
    cold.timings.first_token_ms = now_ms
    assert not run_step(scheduler).chunks
    depot.arrived, now_ms = {0}, 5.0
    assert run_step(scheduler).chunks
    assert cold.timings.load_wait_ms == 0.0


def test_what_the_prefix_cache_has_is_not_part_of_a_prompt_to_compute() -> None:
    scheduler, depot = make(Decision(ColdStart.STREAM))
    adapter, prompt = make_adapter("a"), list(range(11))
    for name in ("first", "again"):
        sequence = add(scheduler, name, 0, max_tokens=1, adapter=adapter, prompt=prompt)
        sequence.prefix_root = b"a"
        while scheduler.has_work:
            plan = run_step(scheduler)
            depot.arrived |= {op.adapter_slot for op in plan.pool_ops if isinstance(op, AdapterLoad)}
        scheduler.residency.discard("a")
    policy = scheduler.cold_starts.policy
    assert isinstance(policy, Always)
    assert [each.prompt_tokens for each in policy.arrivals] == [11, 3]
