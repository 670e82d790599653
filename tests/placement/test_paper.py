"""Algorithm 1: the paper's example, its cost by hand, and every case that it leaves undefined."""

from __future__ import annotations

import math

import pytest

from caraserve_cli.placement.paper import PaperPlacement
from tests.placement.examples import paper_example
from tests.placement.fleets import fleet, loads_of, replica, request, step_model

PAPER = PaperPlacement()


@pytest.mark.parametrize(("is_padded", "right"), [(True, "rank 64"), (False, "rank 32")])
def test_the_papers_example(is_padded: bool, right: str) -> None:
    loads, new = paper_example(is_padded=is_padded)
    chosen = PAPER.choose(new, loads)
    assert chosen is not None
    assert loads.replicas[chosen].name == right
    wrong = 1 - chosen
    assert PAPER.total_costs(new, loads)[wrong] == math.inf


def test_the_cost_by_hand() -> None:
    """Δprefill: 30 prompt tokens and rank 64; Δdecode: rank 64; answers of 10 and 30 tokens; two requests, of
    which one is queued."""
    placed = [[request("x", 8, output_tokens=10), request("y", 8, adapter="of x", output_tokens=30)]]
    loads = loads_of(fleet("a"), placed, start=False)
    loads.start("x")
    new = request("new", 64, prompt_tokens=30)
    # Nine tokens and one of x besides in the step before; both in one step with 30 more after.
    assert PAPER.total_costs(new, loads) == pytest.approx([((30 + 0.64) / 20 + 0.64) * 2])


def test_an_adapter_counts_for_each_of_its_requests() -> None:
    loads = loads_of(fleet("a"), [[request("x", 8, adapter="same"), request("y", 8, adapter="same")]])
    new = request("new", 8, adapter="same", prompt_tokens=10)
    # The first prompt of a queue: its token and one for each of the two that run.
    assert PAPER.total_costs(new, loads) == pytest.approx([((12 + 0.08) / 10 + 0.08) * 2])


def test_average_response_length_of_an_empty_fleet_is_the_requests_own() -> None:
    """0 / 0."""
    assert PAPER.total_costs(request("new", 8, output_tokens=7), loads_of(fleet("a", "b"))).tolist() == [0, 0]
    assert PAPER.choose(request("new", 8), loads_of(fleet("a", "b"))) is not None


def test_an_idle_replica_wins_whatever_it_costs_there() -> None:
    """Cost × 0."""
    facts = [replica("fast"), replica("idle", step_model(step_ms=5000))]
    new = request("new", 8, adapter="of x")
    loads = loads_of(facts, [[request("x", 8)], []])
    assert PAPER.choose(new, loads) == 1


def test_an_idle_replica_that_breaks_the_slo_alone_is_infinite() -> None:
    """Infinite × 0."""
    facts = [replica("idle", step_model(step_ms=50)), replica("busy")]
    loads = loads_of(facts, [[], [request("x", 8)]])
    new = request("new", 8, tpot_slo_ms=36)
    costs = PAPER.total_costs(new, loads)
    assert costs[0] == math.inf
    assert 0 < costs[1] < math.inf
    assert PAPER.choose(new, loads) == 1


def test_all_break_the_slo_and_the_one_with_the_fewest_requests_is_taken() -> None:
    placed = [[request("x"), request("y")], [request("z")]]
    new = request("new", 8, tpot_slo_ms=1)
    assert PAPER.total_costs(new, loads_of(fleet("a", "b"), placed)).tolist() == [math.inf, math.inf]
    for names, of_names in (("ab", placed), ("ba", placed[::-1])):
        loads = loads_of(fleet(*names), of_names)
        chosen = PAPER.choose(new, loads)
        assert chosen is not None
        assert loads.replicas[chosen].name == "b"


@pytest.mark.parametrize("tpot_slo_ms", [None, 1])
def test_of_equals_the_request_draws_one_and_not_the_list(tpot_slo_ms: float | None) -> None:
    """Idle ones, and such as break the SLO."""

    def drawn(names: str) -> list[str]:
        loads = loads_of(fleet(*names))
        news = [request(str(number), 8, tpot_slo_ms=tpot_slo_ms) for number in range(12)]
        chosen = [PAPER.choose(new, loads) for new in news]
        return [loads.replicas[each].name for each in chosen if each is not None]

    assert drawn("abc") == drawn("bca") == drawn("cab")
    assert set(drawn("abc")) == set("abc")


def test_one_with_room_where_all_are_equal() -> None:
    facts = [replica("full", max_requests=1), replica("b")]
    assert PAPER.choose(request("new"), loads_of(facts, [[request("x")]])) == 1


def test_without_a_bound_nothing_is_infinite() -> None:
    loads = loads_of([replica("a", step_model(step_ms=5000))], [[request("x")]])
    assert PAPER.total_costs(request("new"), loads)[0] < math.inf
