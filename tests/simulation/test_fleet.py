"""Simulated fleets: determinism, nothing lost, and that passing over equal steps changes no time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import cycle
from statistics import fmean

import pytest

from caraserve_cli.core import Bounds
from caraserve_cli.errors import OptionError
from caraserve_cli.placement.catalogue import all_placements
from caraserve_cli.simulation.fleet import SimulatedFleet
from caraserve_cli.simulation.simulated_request import Answered
from tests.placement.fleets import MB, replica
from tests.simulation.fleets import adapter, answers_of, simulated, small_fleet, small_requests

POLICIES = [each.name for each in all_placements()]
COLD_STARTS = ["auto", "stream", "cpu-assist", "on-demand", "on-demand-blocking"]


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered_once_and_nothing_is_lost(policy: str) -> None:
    """Three small replicas that are asked for more than they can, with all cold starts; what schedulers,
    blocks, slots and loads hold is counted after every event."""
    for number, cold_start in enumerate(COLD_STARTS):
        requests = small_requests(rate_per_s=15, num_requests=60, seed=number)
        answers = answers_of(requests, small_fleet(3), policy, cold_start=cold_start, check=True)
        assert len(answers) == len(requests)
        for answered in answers.values():
            assert answered.ttft_ms > 0
            assert answered.last_token_ms >= answered.first_token_ms


@pytest.mark.parametrize("policy", ["random", "dlora", "rank-aware"])
@pytest.mark.parametrize("cold_start", COLD_STARTS)
@pytest.mark.parametrize(("rate_per_s", "kv_tokens"), [(4, 2400), (20, 960)])
def test_steps_at_once_take_the_time_of_steps_one_by_one(
    policy: str, cold_start: str, rate_per_s: float, kv_tokens: int
) -> None:
    requests = small_requests(rate_per_s=rate_per_s, num_requests=80)
    fleets = [
        answers_of(
            requests,
            small_fleet(2, kv_tokens=kv_tokens),
            policy,
            cold_start=cold_start,
            most_equal_steps=most,
        )
        for most in (0, 1, 2**31)
    ]
    one_by_one = fleets[0]
    for at_once in fleets[1:]:
        for name, answered in one_by_one.items():
            other = at_once[name]
            assert other.replica == answered.replica
            assert other.first_token_ms == pytest.approx(answered.first_token_ms, rel=1e-9)
            assert other.last_token_ms == pytest.approx(answered.last_token_ms, rel=1e-9)
            assert other.num_preemptions == answered.num_preemptions
            assert other.cold_start == answered.cold_start


@pytest.mark.parametrize("rate_per_s", [4, 20])
def test_replicas_are_scheduled_by_slack_as_engines_are(rate_per_s: float) -> None:
    """Bounds then say who is taken, and steps at once take the time of steps one by one there too."""
    requests = [
        replace(each, facts=replace(each.facts, bounds=Bounds(ttft_slo_ms=ttft_slo_ms, tpot_slo_ms=40)))
        for each, ttft_slo_ms in zip(
            small_requests(rate_per_s=rate_per_s, num_requests=80), cycle((None, 200.0, 2000.0)), strict=False
        )
    ]
    by_arrival, one_by_one, at_once = (
        answers_of(
            requests,
            small_fleet(2),
            "random",
            scheduling=scheduling,
            most_equal_steps=most_equal_steps,
            check=True,
        )
        for scheduling, most_equal_steps in (("fcfs", 0), ("slack", 0), ("slack", 2**31))
    )
    assert {name: answered.first_token_ms for name, answered in by_arrival.items()} != {
        name: answered.first_token_ms for name, answered in one_by_one.items()
    }
    for name, answered in one_by_one.items():
        other = at_once[name]
        assert other.first_token_ms == pytest.approx(answered.first_token_ms, rel=1e-9)
        assert other.last_token_ms == pytest.approx(answered.last_token_ms, rel=1e-9)


def test_a_small_cache_preempts() -> None:
    """So that the test above has seen it."""
    answers = answers_of(small_requests(rate_per_s=20, num_requests=80), small_fleet(2, kv_tokens=960))
    assert sum(each.num_preemptions for each in answers.values())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_seed_gives_the_same_times(policy: str) -> None:
    runs = [answers_of(small_requests(num_requests=60), small_fleet(3), policy) for _ in range(2)]
    assert runs[0] == runs[1]


def test_events_are_fewer_than_steps() -> None:
    requests = [simulated("a", 0, 10, 400), simulated("b", 5000, 10, 100)]
    fleet = SimulatedFleet([replica("r")], all_placements()[0], "auto", lambda _: None)
    fleet.run(requests)
    assert fleet.replicas[0].num_steps > 399
    assert fleet.num_events < 10


def test_first_fit_fills_one_replica_and_most_idle_all() -> None:
    requests = [simulated(str(number), number, 10, 100) for number in range(6)]
    used = {
        policy: {each.replica for each in answers_of(requests, small_fleet(3), policy).values()}
        for policy in ("first-fit", "most-idle")
    }
    assert used == {"first-fit": {0}, "most-idle": {0, 1, 2}}


def test_affinity_goes_where_the_adapter_is() -> None:
    requests = [simulated(str(number), number * 2000, 10, 5, adapter("x", 8)) for number in range(8)]
    assert (
        len({each.replica for each in answers_of(requests, small_fleet(3), "adapter-affinity").values()}) == 1
    )


@pytest.mark.parametrize("policy", ["paper", "rank-aware"])
def test_ranks_are_kept_apart_where_the_kernel_pads(policy: str) -> None:
    """Six of each rank by turns: of two replicas, one has those of rank 64."""
    requests = [
        simulated(f"{number}", number, 10, 200, adapter(f"{number}", 64 if number % 2 else 8, MB))
        for number in range(12)
    ]
    answers = answers_of(requests, small_fleet(2, is_padded=True), policy)
    places = {
        rank: {a.replica for a in answers.values() if a.request.facts.lora_rank == rank} for rank in (8, 64)
    }
    together = answers_of(requests, small_fleet(2, is_padded=True), "most-idle")
    mean = {
        name: sum(each.latency_ms for each in run.values())
        for name, run in (("own", answers), ("idle", together))
    }
    assert len(places[8]) == 1 or len(places[64]) == 1
    assert mean["own"] <= mean["idle"]


def _mean_latency_ms(answers: Mapping[str, Answered]) -> float:
    return fmean(each.latency_ms for each in answers.values())


def test_who_finds_no_replica_waits_and_nobody_passes() -> None:
    requests = [simulated(str(number), number, 10, 30) for number in range(40)]
    answers = answers_of(requests, small_fleet(1), "most-idle")
    firsts = [answers[str(number)].first_token_ms for number in range(40)]
    assert firsts == sorted(firsts)


def test_what_fits_no_replica_is_refused() -> None:
    with pytest.raises(OptionError, match="request 'a' fits no replica: 5010 tokens"):
        answers_of([simulated("a", 0, 5000, 10)], small_fleet(2))


def test_dlora_moves_what_waits() -> None:
    """All want the adapter of one replica; the other one takes some of them over."""
    requests = [simulated(str(number), number, 300, 60, adapter("x", 8, MB)) for number in range(12)]
    moved = answers_of(requests, small_fleet(2), "dlora", check=True)
    assert {each.replica for each in moved.values()} == {0, 1}
