"""Ours: the paper's example, each part of the cost, and no case that is undefined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.rank_aware import RankAwarePlacement
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.placement.request_facts import RequestFacts
from tests.placement.examples import paper_example
from tests.placement.fleets import MB, PROFILE, Clock, fleet, loads_of, replica, request, step_model

POLICY = RankAwarePlacement()


def chosen(new: RequestFacts, loads: ReplicaLoads) -> str:
    index = POLICY.choose(new, loads)
    assert index is not None
    return loads.replicas[index].name


def running(prefix: str, count: int, lora_rank: int = 0, **others: float | int) -> list[RequestFacts]:
    made = [request(f"{prefix} {number}", lora_rank) for number in range(count)]
    bounds = {name: value for name, value in others.items() if name.endswith("_ms")}
    sizes = {name: value for name, value in others.items() if not name.endswith("_ms")}
    return [replace(each, bounds=replace(each.bounds, **bounds), **sizes) for each in made]


@pytest.mark.parametrize(("is_padded", "right"), [(True, "rank 64"), (False, "rank 32")])
def test_the_papers_example(is_padded: bool, right: str) -> None:
    assert chosen(*reversed(paper_example(is_padded=is_padded))) == right


def test_the_cost_by_hand() -> None:
    """One runs: a prompt of 30 tokens takes 31 ms with its token and 0.64 ms in the kernel, the adapter 1 ms.
    Answers have 10 and 20 tokens, 15 on average. That step of 31 ms comes in the place of one of 20; the
    prompt of the one that runs, 10 tokens, took no longer than a decoding step."""
    loads = loads_of(fleet("a"), [[request("x", 8, output_tokens=10)]])
    new = request("new", 64, prompt_tokens=30, output_tokens=20)
    forecast = POLICY.forecast(new, loads)
    assert forecast.ttft_ms == pytest.approx([31.64])
    assert forecast.step_ms == pytest.approx([20.72])
    assert forecast.finish_ms == pytest.approx([31.64 + 19 * 20.72])
    assert forecast.slower_ms == pytest.approx([0.64 + 11 / 15])
    assert forecast.interrupted_ms == pytest.approx([11 / 15])
    costs_ms = forecast.slower_ms * 1 + forecast.finish_ms / 20 + forecast.interrupted_ms
    assert POLICY.costs_ms(new, loads) == pytest.approx(costs_ms)


def test_prompts_of_those_there_come_again() -> None:
    """The same steps and requests; on one the prompts took 200 ms, and will while an answer lasts."""
    placed = [running("x", 2, prompt_tokens=120), running("y", 2, prompt_tokens=10)]
    loads = loads_of(fleet("long", "short"), placed)
    assert loads.interruptions_ms == pytest.approx([100 + 101, 0])
    new = request("new")
    assert POLICY.forecast(new, loads).interrupted_ms == pytest.approx([201 / 10, 0])
    assert chosen(new, loads) == "short"
    for number in range(2):
        loads.end(f"x {number}")
    assert loads.interruptions_ms == pytest.approx([0, 0])


def test_an_idle_replica_does_not_win_whatever_it_costs_there() -> None:
    facts = [replica("idle", step_model(step_ms=80)), replica("busy")]
    assert chosen(request("new"), loads_of(facts, [[], [request("x")]])) == "busy"


def test_an_empty_fleet_divides_nothing_by_0() -> None:
    with np.errstate(all="raise"):
        costs_ms = POLICY.costs_ms(request("new", 8, output_tokens=1), loads_of(fleet("a", "b")))
    assert np.isfinite(costs_ms).all()
    assert (costs_ms > 0).all()


def test_who_breaks_a_bound_everywhere_goes_where_it_costs_least() -> None:
    """And breaks as few bounds of others as possible."""
    placed = [running("x", 3, tpot_slo_ms=20), running("y", 5), running("z", 3, tpot_slo_ms=20)]
    loads = loads_of(fleet("a", "b", "c"), placed)
    new = request("new", 64, tpot_slo_ms=1)
    assert np.isfinite(POLICY.costs_ms(new, loads)).all()
    assert chosen(new, loads) == "b"


def test_bounds_of_others_that_are_broken_already_do_not_count() -> None:
    placed = [running("x", 5, tpot_slo_ms=20.2), running("y", 5, tpot_slo_ms=1)]
    assert chosen(request("new", 64), loads_of(fleet("a", "b"), placed)) == "b"


def test_who_is_near_a_bound_is_spared() -> None:
    """The same step of 20 ms: with 25 ms allowed a millisecond counts more than twice, with 100 ms 1.1."""
    placed = [running("x", 2, tpot_slo_ms=25), running("y", 2, tpot_slo_ms=100), running("z", 7)]
    loads = loads_of(fleet("near", "far", "without"), placed)
    assert loads.common_bound_ms == pytest.approx([25, 100, math.inf], rel=0.01)
    assert chosen(request("new", 64), loads) == "far"


def test_its_own_bound_weighs_what_it_takes_itself() -> None:
    """Four lose more than one does; but where that one is, a token takes a millisecond more."""
    facts = [replica("fast"), replica("slow", step_model(step_ms=21))]
    loads = loads_of(facts, [running("x", 4), running("y", 1)])
    assert chosen(request("new", 64), loads) == "slow"
    assert chosen(request("new", 64, tpot_slo_ms=24), loads) == "fast"


def test_deadlines_of_others_are_bounds_on_their_tokens() -> None:
    """200 ms for 10 tokens leave nothing of a step of 20 ms; 2 s leave most of it."""
    others = running("y", 2)
    for deadline_ms, right in ((2000, "a"), (200, "b")):
        loads = loads_of(fleet("a", "b"), [running("x", 1, deadline_ms=deadline_ms), others])
        assert chosen(request("new", 64), loads) == right


def test_its_own_first_token_decides() -> None:
    """The one with less to compute has the longer queue: 300 ms before the first token, and 40 ms bound."""
    placed = [running("x", 1, prompt_tokens=300), running("y", 20, prompt_tokens=1)]
    loads = loads_of(fleet("queue", "batch"), placed, start=False)
    for each in placed[1]:
        loads.start(each.id)
    assert chosen(request("new", output_tokens=500), loads) == "queue"
    assert chosen(request("new", output_tokens=500, ttft_slo_ms=40), loads) == "batch"


def test_its_own_deadline_decides() -> None:
    """Answers of 100 tokens: the fast one is done after 2 s, though it begins later."""
    facts = [replica("slow", step_model(step_ms=30)), replica("fast")]
    loads = loads_of(facts, [[], running("x", 1, prompt_tokens=900)], start=False)
    new = request("new", output_tokens=100)
    assert POLICY.forecast(new, loads).finish_ms == pytest.approx([10 + 99 * 30, 910 + 99 * 20])
    assert chosen(replace(new, output_tokens=30), loads) == "slow"
    late = request("new", output_tokens=30, deadline_ms=900)
    assert chosen(late, loads_of(facts, [running("y", 9, tpot_slo_ms=30.4, output_tokens=9)])) == "fast"


def test_the_adapter_draws_unless_the_queue_is_long() -> None:
    """Half a second of copying."""
    facts = fleet("there", "not there")
    new = request("new", 8, adapter="of x 0", adapter_bytes=500 * MB)
    assert chosen(new, loads_of(facts, [running("x", 1, 8), running("y", 1, 16)])) == "there"
    queue = running("x", 9, 8, prompt_tokens=400)
    assert chosen(new, loads_of(facts, [queue, running("y", 1, 16)], start=False)) == "not there"


def test_an_adapter_on_its_way_is_waited_for_no_longer_than_that() -> None:
    clock = Clock()
    loads = loads_of(fleet("a", "b"), clock=clock)
    loads.places.note_loading("x", 0, 400)
    new = request("new", 8, adapter="x", adapter_bytes=300 * MB)
    assert POLICY.forecast(new, loads).ttft_ms == pytest.approx([400, 300])
    clock.now_ms = 390
    assert POLICY.forecast(new, loads).ttft_ms == pytest.approx([10.08, 300])


def test_a_link_has_its_turn() -> None:
    clock = Clock(1000)
    loads = loads_of(fleet("a", "b"), clock=clock)
    loads.note_link_busy(0, 1250)
    new = request("new", 8, adapter_bytes=300 * MB)
    assert POLICY.forecast(new, loads).ttft_ms == pytest.approx([550, 300])
    assert chosen(new, loads) == "b"


def test_cpu_workers_give_the_first_token_where_the_link_is_late() -> None:
    """The second token needs the adapter all the same."""
    facts = [replica("assisted", num_cpu_workers=8), replica("busy", num_cpu_workers=8), replica("alone")]
    loads = loads_of(facts, clock=Clock(1000))
    for index in range(3):
        loads.note_link_busy(index, 9000)
    loads.note_cpu_busy(1, 4000)
    new = request("new", 64, adapter_bytes=128 * MB, prompt_tokens=12, output_tokens=2)
    forecast = POLICY.forecast(new, loads)
    assist_ms = float(loads.cold_times.assist_ms(new)[0])
    assert 5 < assist_ms < 12
    assert forecast.ttft_ms == pytest.approx([12.64, 3000 + assist_ms, 8128])
    assert forecast.finish_ms == pytest.approx([8128 + 20.64] * 3)
    single = POLICY.forecast(replace(new, output_tokens=1), loads)
    assert single.finish_ms == pytest.approx(single.ttft_ms)


def test_a_prompt_longer_than_a_chunk_is_assisted_chunk_by_chunk() -> None:
    loads = loads_of([replica("a", num_cpu_workers=8)])
    chunk, two = (request("new", 64, adapter_bytes=128 * MB, prompt_tokens=each) for each in (512, 1024))
    assert loads.cold_times.assist_ms(two) == pytest.approx(2 * loads.cold_times.assist_ms(chunk))


def test_a_machine_without_a_link_copies_nothing() -> None:
    on_cpu = replace(replica("a"), profile=replace(PROFILE, link=None))
    assert POLICY.forecast(request("new", 8), loads_of([on_cpu])).ttft_ms == pytest.approx([10.08])


def test_a_full_cache_is_waited_for() -> None:
    """Half of the two must end first: half of an answer's 10 steps of 20 ms."""
    loads = loads_of([replica("a", kv_tokens=48), replica("b")], [running("x", 2), running("y", 2)])
    new = request("new", prompt_tokens=14, output_tokens=14)
    response_tokens = (2 * 10 + 14) / 3
    assert POLICY.forecast(new, loads).ttft_ms == pytest.approx([16 + 0.5 * response_tokens * 20, 16])
    assert chosen(new, loads) == "b"


def test_one_adapter_counts_once() -> None:
    """As the kernels read it."""
    loads = loads_of(fleet("same", "others"), [running("x", 4), running("y", 4, 8)])
    for number in range(4):
        loads.end(f"x {number}")
        loads.place(request(f"x {number}", 64, adapter="z"), 0)
        loads.start(f"x {number}")
    loads.places.note_resident("z", 1)
    forecast = POLICY.forecast(request("new", 64, adapter="z"), loads)
    assert forecast.step_ms == pytest.approx([20.64, 20.96])


def test_of_equal_costs_the_fewest_requests_win() -> None:
    """With 1% more ranks."""
    loads = loads_of(fleet("a", "b"), [running("x", 1, 16), running("y", 2, 8, output_tokens=1)])
    new = request("new", output_tokens=1)
    costs_ms = POLICY.costs_ms(new, loads)
    assert costs_ms[0] == pytest.approx(costs_ms[1], rel=2)
    assert chosen(new, loads) == "a"


@pytest.mark.parametrize("order", [("a", "b", "c"), ("c", "a", "b"), ("b", "c", "a")])
def test_equals_are_drawn_by_the_requests_id_and_not_by_the_list(order: Sequence[str]) -> None:
    ids = [str(number) for number in range(12)]
    drawn = [chosen(request(each), loads_of(fleet(*order))) for each in ids]
    assert drawn == [chosen(request(each), loads_of(fleet("a", "b", "c"))) for each in ids]
    assert len(set(drawn)) == 3


def test_nothing_starves_behind_replicas_that_are_late() -> None:
    """All are far behind; whoever has room still takes it."""
    facts: list[ReplicaFacts] = [replica("a", max_requests=3), replica("b", max_requests=3)]
    loads = loads_of(facts, [running("x", 3), running("y", 2, prompt_tokens=4000)], start=False)
    loads.note_link_busy(1, math.inf)
    assert chosen(request("new", 8, ttft_slo_ms=1, tpot_slo_ms=1, deadline_ms=1), loads) == "b"
