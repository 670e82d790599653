"""Replicas that die, whatever they had: who is guilty, who is given up, and all others are answered."""

from __future__ import annotations

import pytest

from caraserve_cli.bench.echo import numbered_adapter
from caraserve_cli.core import Failure
from caraserve_cli.errors import InputError, RowErrorCode
from caraserve_cli.fleet.deaths import MOST_DEATHS
from caraserve_cli.fleet.fleet import Fleet
from caraserve_cli.fleet.local import NoEvents
from caraserve_cli.placement.catalogue import placement
from tests.fleet.mortal_crew import MortalCrew, description, make_request
from tests.fleet.mortal_fleet import Clock, assert_each_once, finish, ignore_note, start


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_what_kills_every_replica_fails_and_all_else_is_answered(num_replicas: int) -> None:
    """Whoever has one of them dies at once, before it has answered anything."""
    crew = MortalCrew([description() for _ in range(num_replicas)])
    crew.poison = {"r0", "r77"}
    fleet = start(crew)
    requests = [make_request(number) for number in range(300)]
    fleet.submit(requests)
    outcomes = finish(fleet)
    assert_each_once(outcomes, requests)
    failures = {each.request.id: each for each in outcomes if isinstance(each, Failure)}
    assert set(failures) == crew.poison
    assert {failure.code for failure in failures.values()} == {RowErrorCode.REPLICA_LOST}
    assert "of poison" in failures["r0"].message
    fleet.submit([make_request(number) for number in range(300, 400)])
    assert len(finish(fleet)) == 100


def test_suspects_do_not_wait_for_ever_for_a_replica_without_work() -> None:
    crew = MortalCrew([description()])
    crew.poison = {"r0"}
    fleet = Fleet(
        crew, placement("most-idle"), numbered_adapter, Clock(tick_ms=100.0), NoEvents(), ignore_note
    )
    fleet.submit([make_request(number) for number in range(60)])
    crew.most_answers = 1
    for number in range(60, 20_000):
        if fleet.num_unfinished < 200:
            fleet.submit([make_request(number)])
        outcomes = fleet.poll()
        if any(isinstance(outcome, Failure) for outcome in outcomes):
            return
    raise AssertionError("it was never tried")


def test_a_replica_that_answers_nothing_is_given_up_whatever_it_had() -> None:
    crew = MortalCrew([description()])
    crew.poison = {f"r{number}" for number in range(10)}
    fleet = start(crew)
    fleet.submit([make_request(number) for number in range(10)])
    with pytest.raises(InputError, match="no replica is left"):
        finish(fleet)
    assert crew.num_replacements == MOST_DEATHS


def test_what_fits_only_a_replica_that_was_given_up_is_refused() -> None:
    """It would wait for ever for one that does not come back."""
    crew = MortalCrew([description(kv_tokens=160), description(kv_tokens=1600)])
    crew.replaced_by = description(kv_tokens=1600)
    fleet = start(crew)
    crew.most_answers = 0
    fleet.submit([make_request(number) for number in range(30)])
    for _ in range(MOST_DEATHS + 1):
        fleet.poll()
        fleet.poll()
        crew.kill(1)
    fleet.poll()
    fleet.submit([make_request(1000, prompt_tokens=1000)])
    crew.most_answers = None
    assert "r1000" in {outcome.request.id for outcome in finish(fleet)}
    assert "r1000" in {request.id for request in crew.sent[0]}, "which tells why it cannot answer it"


def test_who_dies_too_often_is_given_up_and_the_others_go_on() -> None:
    crew = MortalCrew([description(), description()])
    crew.most_answers = 1
    fleet = start(crew)
    requests = [make_request(number) for number in range(400)]
    fleet.submit(requests)
    outcomes = []
    for _ in range(MOST_DEATHS + 1):
        outcomes += fleet.poll()
        crew.kill(0)
        outcomes += fleet.poll()
    assert crew.num_replacements == MOST_DEATHS
    num_sent = len(crew.sent[0])
    outcomes += finish(fleet)
    assert_each_once(outcomes, requests)
    assert len(crew.sent[0]) == num_sent


def test_nobody_is_left() -> None:
    crew = MortalCrew([description()])
    crew.most_answers = 1
    fleet = start(crew)
    fleet.submit([make_request(number) for number in range(100)])
    for _ in range(MOST_DEATHS):
        crew.kill(0, "of that")
        fleet.poll()
        fleet.poll()
    crew.kill(0, "of that")
    with pytest.raises(InputError, match=r"no replica is left.*because of that; .*--resume"):
        fleet.poll()


def test_each_death_is_told_at_once_and_kept_by_replica() -> None:
    notes: list[str] = []
    crew = MortalCrew([description(), description()])
    crew.most_answers = 1
    fleet = start(crew, on_note=notes.append)
    fleet.submit([make_request(number) for number in range(400)])
    for number in range(MOST_DEATHS + 1):
        fleet.poll()
        crew.kill(1, f"of cause {number}")
        fleet.poll()
    assert notes == [
        *(
            f"replica-1 died, because of cause {number}; another takes its place"
            for number in range(MOST_DEATHS)
        ),
        f"replica-1 died, because of cause {MOST_DEATHS}; it is given up, for it died too often",
    ]
    well, dead = (replica.as_json() for replica in fleet.account.replicas)
    assert (well["deaths"], well["death_reasons"]) == (0, [])
    assert dead["death_reasons"] == [f"of cause {number}" for number in range(MOST_DEATHS + 1)]
