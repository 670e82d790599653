"""What all placements have in common, and what the simple ones do."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.errors import OptionError
from caraserve_cli.placement.catalogue import DEFAULT_PLACEMENT, all_placements, placement
from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.policy import MigratingPlacement
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.placement.request_facts import RequestFacts
from tests.placement.fleets import MB, Clock, fleet, loads_of, replica, request, step_model

NAMES = [each.name for each in all_placements()]
# By definition.
BY_LIST = ("first-fit",)
MODELS = (step_model(), step_model(is_padded=True), step_model(step_ms=35))


@st.composite
def requests(draw: st.DrawFn, name: str) -> RequestFacts:
    lora_rank = draw(st.sampled_from((0, 8, 64)))
    return request(
        name,
        lora_rank,
        adapter=f"{draw(st.integers(0, 3))} of rank {lora_rank}",
        prompt_tokens=draw(st.integers(1, 400)),
        output_tokens=draw(st.integers(1, 90)),
        adapter_bytes=lora_rank * MB,
        tpot_slo_ms=draw(st.sampled_from((None, 20, 36))),
        ttft_slo_ms=draw(st.sampled_from((None, 100))),
        deadline_ms=draw(st.sampled_from((None, 900))),
    )


@st.composite
def replicas(draw: st.DrawFn) -> list[ReplicaFacts]:
    return [
        replica(
            f"replica {index}",
            draw(st.sampled_from(MODELS)),
            max_requests=draw(st.sampled_from((1, 3, 64))),
            max_running=draw(st.sampled_from((2, 64))),
            kv_tokens=draw(st.sampled_from((320, 32_000))),
            pool_bytes=draw(st.sampled_from((63, 1000))) * MB,
            num_cpu_workers=draw(st.sampled_from((0, 4))),
        )
        for index in range(draw(st.integers(1, 5)))
    ]


# A replica, its request, and whether that runs.
Placed = tuple[int, RequestFacts, bool]


@st.composite
def placed_on(draw: st.DrawFn, num_replicas: int) -> list[Placed]:
    return [
        (draw(st.integers(0, num_replicas - 1)), draw(requests(f"placed {number}")), draw(st.booleans()))
        for number in range(draw(st.integers(0, 12)))
    ]


def loaded(facts: list[ReplicaFacts], placed: list[Placed], order: list[int]) -> ReplicaLoads:
    """The replicas in another order: `order[i]` is the i-th one."""
    loads = ReplicaLoads([facts[index] for index in order], Clock(50))
    for index, each, runs in placed:
        place = order.index(index)
        if loads.has_room(each)[place]:
            loads.place(each, place)
            if runs:
                loads.start(each.id)
    return loads


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_who_is_chosen_has_room_and_the_order_of_the_list_is_nothing(name: str, data: st.DataObject) -> None:
    facts = data.draw(replicas())
    placed = data.draw(placed_on(len(facts)))
    new = data.draw(requests("new"))
    order = data.draw(st.permutations(range(len(facts))))
    loads, permuted = loaded(facts, placed, list(range(len(facts)))), loaded(facts, placed, order)
    chosen, of_permuted = (placement(name).choose(new, each) for each in (loads, permuted))
    has_room = loads.has_room(new)
    if chosen is not None:
        assert has_room[chosen]
    if name != "first-fit":
        assert (chosen is None) == (not has_room.any())
    if name not in BY_LIST:
        assert chosen == (None if of_permuted is None else order[of_permuted])


@pytest.mark.parametrize("name", NAMES)
def test_nobody_is_chosen_where_nobody_has_room(name: str) -> None:
    policy = placement(name)
    assert policy.choose(request("new"), ReplicaLoads([], Clock())) is None
    loads = loads_of([replica("a", max_requests=1)], [[request("x")]])
    assert policy.choose(request("new"), loads) is None
    loads.end("x")
    assert policy.choose(request("new"), loads) == 0
    loads.close(0)
    assert policy.choose(request("new"), loads) is None


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BY_LIST])
def test_equals_take_turns(name: str) -> None:
    """90 ids draw from three idle replicas."""
    loads = loads_of(fleet("a", "b", "c"))
    drawn = Counter(placement(name).choose(request(str(number)), loads) for number in range(90))
    assert sorted(drawn) == [0, 1, 2]
    assert min(drawn.values()) >= 15


def test_names() -> None:
    assert NAMES == ["first-fit", "random", "most-idle", "adapter-affinity", "dlora", "paper", "rank-aware"]
    assert placement(DEFAULT_PLACEMENT).name == "rank-aware"
    with pytest.raises(OptionError, match="--placement: 'best' is none of first-fit, random"):
        placement("best")
    assert [each.name for each in all_placements() if isinstance(each, MigratingPlacement)] == ["dlora"]


def test_first_fit_passes_who_would_make_it_wait() -> None:
    facts = [
        replica("a", max_running=1),
        replica("b", kv_tokens=32),
        replica("c", pool_bytes=MB),
        replica("d"),
    ]
    placed = [[request("x")], [request("y")], [request("z", 8)], []]
    policy = placement("first-fit")
    assert policy.choose(request("new", 8), loads_of(facts, placed)) == 3
    assert policy.choose(request("new", 8), loads_of(facts[:3], placed[:3])) is None
    assert policy.choose(request("new", 8), loads_of(fleet("a", "b"), [[request("x")], []])) == 0


def test_a_seed_draws_the_same_again_and_another_one_something_else() -> None:
    loads = loads_of(fleet(*"abcdefgh"))

    def drawn(seed: int) -> list[int | None]:
        return [placement("random", seed).choose(request(str(number)), loads) for number in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)


def test_the_most_idle_has_the_fewest_requests_whatever_they_are() -> None:
    placed = [[request("x"), request("y")], [request("z", 64, prompt_tokens=4000)]]
    assert placement("most-idle").choose(request("new"), loads_of(fleet("a", "b"), placed)) == 1


def test_affinity_goes_where_the_adapter_is_and_else_to_its_home() -> None:
    policy = placement("adapter-affinity")
    placed = [[request("x", 8, adapter="known")], [request("y", 8, adapter="known"), request("z")], []]
    loads = loads_of(fleet("a", "b", "c"), placed)
    assert policy.choose(request("new", 8, adapter="known"), loads) == 0
    assert policy.choose(request("new"), loads) == 2
    homes = {policy.choose(request(str(number), 8, adapter="unknown"), loads) for number in range(9)}
    assert len(homes) == 1
    full = loads_of([replica("a", max_requests=1), replica("b")], placed[:1])
    assert policy.choose(request("new", 8, adapter="known"), full) == 1


def test_facts_of_replicas_may_all_differ() -> None:
    """Nothing is taken from the first one."""
    slow = replace(replica("slow"), step_model=step_model(step_ms=80))
    for order in ([slow, replica("fast")], [replica("fast"), slow]):
        chosen = placement("rank-aware").choose(request("new"), loads_of(order))
        assert chosen is not None
        assert order[chosen].name == "fast"
