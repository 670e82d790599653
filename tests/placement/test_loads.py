"""Loads: aggregates are what a recount gives, after whatever happened; room, waits and copies by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.core import AdapterInfo, Request, SamplingParams
from caraserve_cli.perf.batch_load import BatchLoad, RankSums
from caraserve_cli.placement.bound_tally import BoundTally
from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.request_facts import RequestFacts
from tests.placement.fleets import MB, Clock, fleet, loads_of, replica, request, step_model

LORA_RANKS = (0, 8, 16, 32, 64)
REPLICAS = [replica("a", max_requests=6), replica("b", step_model(is_padded=True)), replica("c")]


@dataclass
class Live:
    facts: RequestFacts
    replica: int
    placed_ms: float
    has_started: bool = False


def sums(lora_ranks: list[int]) -> RankSums[int]:
    ranks = [lora_rank for lora_rank in lora_ranks if lora_rank]
    return RankSums(len(ranks), sum(ranks), max(ranks, default=0))


def common_bound_ms(loads: ReplicaLoads, replica: int, bounds_ms: list[float]) -> float:
    tally = BoundTally(1)
    for bound_ms in bounds_ms:
        tally.add(0, bound_ms)
    if not bounds_ms:
        return math.inf
    interrupted_ms = loads.interruptions_ms[replica] * len(bounds_ms) / loads.output_tokens[replica]
    return tally.common_ms(0, len(bounds_ms), float(loads.decode_ms[replica] + interrupted_ms))


def check_recount(loads: ReplicaLoads, live: list[Live]) -> None:
    requests, queue = loads.batch_of_requests(), loads.queue_ranks()
    plus = request("plus", 32, adapter="adapter 3")
    num_new = loads.num_new(plus)
    batch = loads.batch(plus, num_new)
    assert num_new is not None
    for index, facts in enumerate(REPLICAS):
        here = [each for each in live if each.replica == index]
        queued = [each.facts for each in here if not each.has_started]
        used = {each.facts.adapter: each.facts for each in here if each.facts.adapter}
        prompt_tokens = sum(each.facts.prompt_tokens for each in here)
        output_tokens = sum(each.facts.output_tokens for each in here)
        backlog_tokens = sum(each.prompt_tokens for each in queued)
        own = BatchLoad(
            len(here), sums([each.lora_rank for each in used.values()]), prompt_tokens + output_tokens / 2
        )
        assert loads.num_requests[index] == len(here)
        assert loads.num_running[index] == len(here) - len(queued)
        assert loads.prompt_tokens[index] == prompt_tokens
        assert loads.output_tokens[index] == output_tokens
        assert loads.backlog_tokens[index] == backlog_tokens
        assert loads.pool_bytes[index] == sum(each.adapter_bytes for each in used.values())
        assert tuple(column[index] for column in requests.ranks) == sums([e.facts.lora_rank for e in here])
        assert tuple(column[index] for column in queue) == sums([each.lora_rank for each in queued])
        assert loads.decode_ms[index] == facts.step_model.decode_ms(own)
        assert loads.backlog_ms[index] == facts.step_model.prompts_ms(
            backlog_tokens, sums([each.lora_rank for each in queued]), len(here) - len(queued)
        )
        assert loads.queued_on(index) == queued
        assert num_new[index] == ("adapter 3" not in used)
        with_one = sums([each.lora_rank for each in {**used, "adapter 3": plus}.values()])
        assert tuple(column[index] for column in batch.ranks) == with_one
        bounds = [each.facts.token_bound_ms(each.placed_ms) for each in here]
        assert loads.common_bound_ms[index] == common_bound_ms(loads, index, bounds)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_aggregates_are_what_a_recount_gives(data: st.DataObject) -> None:
    """Bounds are far from the 50 ms that are asked about, or equal."""
    clock = Clock()
    loads, live = ReplicaLoads(REPLICAS, clock), list[Live]()
    for number in range(data.draw(st.integers(0, 40))):
        clock.now_ms += data.draw(st.integers(0, 3))
        event = data.draw(st.sampled_from(["place", "place", "place", "start", "end", "close"]))
        index = data.draw(st.integers(0, len(REPLICAS) - 1))
        if event == "place":
            lora_rank = data.draw(st.sampled_from(LORA_RANKS))
            facts = request(
                str(number),
                lora_rank,
                # Adapters' ranks are theirs: adapter 3 has rank 32.
                adapter=f"adapter {LORA_RANKS.index(lora_rank)}",
                prompt_tokens=data.draw(st.integers(1, 3000)),
                output_tokens=data.draw(st.integers(1, 9)),
                tpot_slo_ms=data.draw(st.sampled_from([None, 5, 49, 50, 52, 900])),
                deadline_ms=data.draw(st.sampled_from([None, 10, 10**6])),
            )
            if not loads.has_room(facts)[index]:
                with pytest.raises(ValueError, match="takes no more"):
                    loads.place(facts, index)
                continue
            loads.place(facts, index)
            live.append(Live(facts, index, clock.now_ms))
        elif event == "close":
            lost = [each.facts for each in live if each.replica == index]
            assert loads.close(index) == lost
            assert not loads.has_room(request("any"))[index]
            loads.open(index)
            live = [each for each in live if each.replica != index]
        elif live:
            chosen = data.draw(st.sampled_from(live))
            if event == "start":
                loads.start(chosen.facts.id)
                chosen.has_started = True
            else:
                assert loads.end(chosen.facts.id) is chosen.facts
                live.remove(chosen)
        check_recount(loads, live)


def test_the_largest_rank_is_the_next_largest_when_it_leaves() -> None:
    loads = loads_of(fleet("a"), [[request("x", 64), request("y", 64), request("z", 16)]])
    largest = []
    for name in "xyz":
        loads.end(name)
        largest.append(loads.batch_of_requests().ranks.lora_rank_max[0])
    assert largest == [64, 16, 0]


def test_names_and_ids_are_distinct() -> None:
    with pytest.raises(ValueError, match="same name"):
        ReplicaLoads(fleet("a", "a"), Clock())
    loads = loads_of(fleet("a"), [[request("x")]])
    with pytest.raises(ValueError, match="'x' is placed already"):
        loads.place(request("x"), 0)


def test_room_is_for_one_more_that_would_fit_alone() -> None:
    replicas = [
        replica("open"),
        replica("full", max_requests=1),
        replica("small cache", kv_tokens=160),
        replica("small pool", pool_bytes=MB),
        replica("closed"),
    ]
    loads = loads_of(replicas, [[], [request("x")]])
    loads.close(4)
    wanted = request("y", 8, prompt_tokens=150, output_tokens=11, adapter_bytes=MB + 1)
    assert loads.has_room(wanted).tolist() == [True, False, False, False, False]
    loads.end("x")
    loads.open(4)
    assert loads.has_room(request("y", 8, prompt_tokens=150, output_tokens=10)).all()


def test_who_must_end_before_a_request_has_room_by_hand() -> None:
    """Of 2 requests one must end for a slot; of 2 · 20 tokens 8 for a cache of 48 and 16 more; of 2 MB one
    for a pool of 2 MB, but none if the adapter is in use."""
    placed = [request(f"{name} {number}", 8, adapter=f"{number}") for name in "abcd" for number in range(2)]
    replicas = [
        replica("a"),
        replica("b", max_running=2),
        replica("c", kv_tokens=48),
        replica("d", pool_bytes=2 * MB),
    ]
    loads = loads_of(replicas, [placed[index : index + 2] for index in range(0, 8, 2)])
    new = request("new", 8, prompt_tokens=10, output_tokens=6)
    assert loads.shortage(new, loads.num_new(new)) == pytest.approx([0, 1 / 2, 8 / 40, 1 / 2])
    known = request("known", 8, adapter="1", prompt_tokens=10, output_tokens=6)
    assert loads.shortage(known, loads.num_new(known)) == pytest.approx([0, 1 / 2, 8 / 40, 0])
    base = request("base", prompt_tokens=10, output_tokens=6)
    assert loads.shortage(base, loads.num_new(base)) == pytest.approx([0, 1 / 2, 8 / 40, 0])


def test_copies_follow_one_another_on_a_link() -> None:
    """A megabyte takes a millisecond; what is there or on its way is not copied again."""
    clock = Clock(100)
    loads = loads_of(fleet("a", "b"), clock=clock)

    def until_ready_ms(adapter: str) -> list[float]:
        return loads.places.until_ready_ms(adapter, np.full(2, 7.0), clock.now_ms).tolist()

    loads.place(request("x", 8, adapter="x", adapter_bytes=5 * MB), 0)
    loads.place(request("y", 8, adapter="y", adapter_bytes=3 * MB), 0)
    loads.place(request("z", 8, adapter="x", adapter_bytes=5 * MB), 0)
    assert loads.link_free_ms.tolist() == [108, -math.inf]
    assert until_ready_ms("x") == [5, 7]
    assert until_ready_ms("y") == [8, 7]
    clock.now_ms = 106
    assert until_ready_ms("x") == [0, 7]
    loads.places.note_resident("y", 0)
    assert until_ready_ms("y") == [0, 7]
    loads.places.note_gone("x", 0)
    assert until_ready_ms("x") == [7, 7]
    loads.close(0)
    assert until_ready_ms("y") == [7, 7]


def test_the_common_bound_is_of_those_that_have_one() -> None:
    loads = loads_of(fleet("a", "b"), [[request("x", tpot_slo_ms=36), request("y", tpot_slo_ms=36)]])
    assert loads.common_bound_ms == pytest.approx([36, math.inf], rel=0.01)
    loads.place(request("z"), 0)
    assert 40 < loads.common_bound_ms[0] < math.inf
    for each in "xy":
        loads.end(each)
    assert loads.common_bound_ms.tolist() == [math.inf, math.inf]


def test_facts_of_a_request() -> None:
    info = AdapterInfo(name="x", lora_rank=8, num_bytes=5, identity=b"x")
    tokenised = Request(
        id="r",
        line=1,
        prompt_token_ids=(1, 2),
        adapter="x",
        sampling=SamplingParams(max_tokens=9),
        arrival_ms=3,
    )
    facts = RequestFacts.of(tokenised, info)
    assert facts == request(
        "r", 8, adapter="x", prompt_tokens=2, output_tokens=9, adapter_bytes=5, arrival_ms=3
    )
    assert RequestFacts.of(tokenised, None, output_tokens=4).output_tokens == 4
    assert RequestFacts.of(tokenised, None).adapter is None


def test_what_is_left_of_bounds() -> None:
    late = request("r", arrival_ms=100, ttft_slo_ms=50, deadline_ms=400, output_tokens=10, tpot_slo_ms=30)
    assert (late.ttft_left_ms(200), late.deadline_left_ms(200)) == (-50, 300)
    assert (late.token_bound_ms(150), late.token_bound_ms(300)) == (30, 20)
    assert request("r").token_bound_ms(5) == math.inf
