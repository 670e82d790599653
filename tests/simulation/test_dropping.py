"""`--on-missed-deadline drop` on virtual time: who is late becomes the failure that an engine would give."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caraserve_cli.core import Bounds, Failure
from caraserve_cli.errors import RowErrorCode
from caraserve_cli.placement.catalogue import placement
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.simulation.fleet import SimulatedFleet
from caraserve_cli.simulation.simulated_request import Answered, SimulatedRequest
from tests.placement.fleets import replica
from tests.simulation.fleets import simulated, small_fleet, small_requests


def _dropping(facts: ReplicaFacts) -> ReplicaFacts:
    return replace(facts, config=replace(facts.config, drop_missed=True))


def _run(
    requests: list[SimulatedRequest], replicas: list[ReplicaFacts], most_equal_steps: int = 2**31
) -> tuple[dict[str, Answered], dict[str, Failure]]:
    answers: list[Answered] = []
    failures: list[Failure] = []
    fleet = SimulatedFleet(
        replicas,
        placement("most-idle"),
        "on-demand",
        answers.append,
        "slack",
        most_equal_steps,
        failures.append,
    )
    for _ in fleet.events(requests):
        fleet.check_integrity()
    assert fleet.num_unanswered == 0
    return {each.request.facts.id: each for each in answers}, {each.request.id: each for each in failures}


@pytest.mark.parametrize("most_equal_steps", [0, 2**31])
def test_who_runs_and_who_waits_is_dropped_when_it_is_late(most_equal_steps: int) -> None:
    """Tokens at 30, 50, 70 and 90, and the next at 110, 15 ms late. Who waits for its end is due at 75, and
    is looked at before the step from 90 on."""
    machine = _dropping(replica("r", max_running=1))
    requests = [
        simulated("runs", 0, 30, 100, bounds=Bounds(deadline_ms=95)),
        simulated("waits", 5, 10, 5, bounds=Bounds(deadline_ms=70)),
        simulated("after", 10, 20, 1),
    ]
    answers, failures = _run(requests, [machine], most_equal_steps)
    assert {each.code for each in failures.values()} == {RowErrorCode.DEADLINE_EXCEEDED}
    assert "exceeded by 15.0 ms when it was dropped: running, after 4 of" in failures["runs"].message
    assert "exceeded by 15.0 ms when it was dropped: waiting, before its" in failures["waits"].message
    assert answers["after"].first_token_ms == pytest.approx(110 + 20)


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_every_request_is_answered_in_time_or_dropped(steps_in_flight: int) -> None:
    """Passing over equal steps changes neither who, nor when."""
    requests = [
        replace(each, facts=replace(each.facts, bounds=Bounds(deadline_ms=2500)))
        for each in small_requests(rate_per_s=15, num_requests=80)
    ]
    fleet = [replace(_dropping(each), steps_in_flight=steps_in_flight) for each in small_fleet(2)]
    (answers, failures), (others, other_failures) = (_run(requests, fleet, most) for most in (0, 2**31))
    assert len(answers) + len(failures) == len(requests)
    assert failures
    assert all(each.latency_ms <= 2500 for each in answers.values())
    assert {name: each.message for name, each in failures.items()} == {
        name: each.message for name, each in other_failures.items()
    }
    for name, answered in answers.items():
        assert others[name].last_token_ms == pytest.approx(answered.last_token_ms, rel=1e-9)


def test_without_the_option_nobody_is_dropped() -> None:
    answers, failures = _run([simulated("late", 0, 30, 10, bounds=Bounds(deadline_ms=50))], [replica("r")])
    assert not failures
    assert answers["late"].latency_ms > 50
