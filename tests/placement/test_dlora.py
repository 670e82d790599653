"""Reactive migration: who moves, with what, where to, and when nobody does."""

from __future__ import annotations

from caraserve_cli.placement.dlora import DloraPlacement
from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.migration import AdapterMigration, RequestMigration
from caraserve_cli.placement.request_facts import RequestFacts
from tests.placement.fleets import MB, fleet, loads_of, replica, request

DLORA = DloraPlacement()


def queue(name: str, count: int, lora_rank: int = 8, prompt_tokens: int = 1000) -> list[RequestFacts]:
    """Requests of one adapter."""
    return [
        request(f"{name} {number}", lora_rank, adapter=name, prompt_tokens=prompt_tokens)
        for number in range(count)
    ]


def carry_out(loads: ReplicaLoads) -> list[AdapterMigration | RequestMigration]:
    migrations = DLORA.rebalance(loads)
    for each in migrations:
        if isinstance(each, RequestMigration):
            loads.place(loads.end(each.request_id), each.target)
    return migrations


def test_a_request_goes_where_its_adapter_is_and_the_least_work() -> None:
    placed = [queue("x", 2), [*queue("x2", 1), request("also", 8, adapter="x")], []]
    loads = loads_of(fleet("a", "b", "c"), placed, start=False)
    assert DLORA.choose(request("new", 8, adapter="x", prompt_tokens=10), loads) == 1
    assert DLORA.choose(request("new", 8, adapter="unknown"), loads) == 2


def test_half_of_a_queue_moves_the_last_placed_first_and_the_adapter_before_them() -> None:
    loads = loads_of(fleet("a", "b"), [queue("x", 4), []], start=False)
    assert carry_out(loads) == [
        AdapterMigration("x", 0, 1),
        RequestMigration("x 3", 0, 1),
        RequestMigration("x 2", 0, 1),
    ]
    assert DLORA.rebalance(loads) == []


def test_an_adapter_that_is_there_does_not_move() -> None:
    loads = loads_of(fleet("a", "b"), [queue("x", 4), []], start=False)
    loads.places.note_resident("x", 1)
    assert DLORA.rebalance(loads) == [RequestMigration(f"x {number}", 0, 1) for number in (3, 2)]


def test_who_runs_does_not_move() -> None:
    loads = loads_of(fleet("a", "b"), [queue("x", 4), []])
    assert DLORA.rebalance(loads) == []


def test_nothing_moves_where_the_copy_takes_longer_than_the_wait() -> None:
    huge = [request(str(number), 8, adapter_bytes=9000 * MB, prompt_tokens=1000) for number in range(3)]
    facts = [replica(name, pool_bytes=99_000 * MB) for name in "ab"]
    assert DLORA.rebalance(loads_of(facts, [huge, []], start=False)) == []


def test_nothing_moves_to_who_takes_no_more_or_cannot_hold_it() -> None:
    placed = [queue("x", 4), []]
    closed = loads_of(fleet("a", "b"), placed, start=False)
    closed.close(1)
    assert DLORA.rebalance(closed) == []
    small = [replica("a"), replica("b", kv_tokens=160)]
    assert DLORA.rebalance(loads_of(small, placed, start=False)) == []
    one = [replica("a"), replica("b", max_requests=1)]
    assert DLORA.rebalance(loads_of(one, placed, start=False))[1:] == [RequestMigration("x 3", 0, 1)]


def test_little_more_work_is_no_reason() -> None:
    loads = loads_of(fleet("a", "b"), [queue("x", 4), queue("y", 3)], start=False)
    assert DLORA.rebalance(loads) == []


def test_a_fleet_without_replicas() -> None:
    assert DLORA.rebalance(loads_of([])) == []
