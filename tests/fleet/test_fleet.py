"""The driver over replicas that answer at once: each request once, in order, whoever dies."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest

from caraserve_cli.bench.echo import numbered_adapter
from caraserve_cli.core import Completion, Failure, Request
from caraserve_cli.errors import RowError, RowErrorCode
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet import fleet_options
from caraserve_cli.fleet.fleet import Fleet
from caraserve_cli.fleet.fleet_facts import AHEAD_REQUESTS, fleet_facts
from caraserve_cli.fleet.local import NoEvents
from caraserve_cli.fleet.messages import ReplicaNews
from caraserve_cli.perf.step_correction import StepCorrection, StepCorrections
from caraserve_cli.placement import catalogue
from caraserve_cli.placement.catalogue import all_placements, placement
from tests.fleet.mortal_crew import MortalCrew, description, make_request
from tests.fleet.mortal_fleet import Clock, assert_each_once, finish, ignore_note, start
from tests.perf.h200 import h200_profile

NAMES = [each.name for each in all_placements()]


def test_the_command_line_knows_the_placements_that_there_are() -> None:
    assert list(fleet_options.PLACEMENT_NAMES) == NAMES
    assert fleet_options.DEFAULT_PLACEMENT == catalogue.DEFAULT_PLACEMENT
    assert set(fleet_options.MODEL_PLACEMENTS) < set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_everything_comes_back_once_whoever_dies(name: str) -> None:
    crew = MortalCrew([description(), description(max_running=8), description(kv_tokens=640)])
    crew.most_answers = 3
    fleet = start(crew, name)
    requests = [make_request(number, None if number % 5 == 0 else str(number % 7)) for number in range(500)]
    fleet.submit(requests)
    outcomes = []
    for victim in (0, 1, 0, 2):
        for _ in range(5):
            outcomes += fleet.poll()
        crew.kill(victim)
    outcomes += finish(fleet)
    assert_each_once(outcomes, requests)
    assert fleet.account.replaced_replicas == 4
    assert sum(replica.answered for replica in fleet.account.replicas) == 500
    assert sum(map(len, crew.sent)) == 500 + crew.num_lost


def test_no_replica_has_more_than_it_is_sent() -> None:
    crew = MortalCrew([description(), description()])
    crew.most_answers = 0
    fleet = start(crew)
    fleet.submit([make_request(number) for number in range(1000)])
    for _ in range(5):
        assert fleet.poll() == []
    assert list(map(len, crew.holding)) == [4 + AHEAD_REQUESTS] * 2
    assert fleet.num_unfinished == 1000
    crew.most_answers = 1
    assert len(fleet.poll()) == 2
    assert list(map(len, crew.holding)) == [4 + AHEAD_REQUESTS] * 2, "who has room is sent more at once"


def test_requests_go_out_in_their_order_and_lists() -> None:
    crew = MortalCrew([description()])
    crew.most_answers = 7
    fleet = start(crew)
    requests = [make_request(number) for number in range(300)]
    fleet.submit(requests)
    fleet.poll()
    crew.kill(0)
    finish(fleet)
    lost = crew.sent[0][7 : 4 + AHEAD_REQUESTS + 7]
    assert crew.sent[0] == [*requests[: 4 + AHEAD_REQUESTS + 7], *lost, *requests[4 + AHEAD_REQUESTS + 7 :]]


def test_what_only_a_dead_replica_holds_waits_for_it_and_others_pass() -> None:
    crew = MortalCrew([description(kv_tokens=160), description(kv_tokens=1600)])
    crew.replaced_by = None
    crew.most_answers = 0
    fleet = start(crew)
    fleet.submit([make_request(0)])
    fleet.poll()
    crew.kill(1)
    fleet.poll()
    crew.most_answers = None
    large, small = make_request(1, prompt_tokens=1000), make_request(2)
    fleet.submit([large, small])
    outcomes = [outcome for _ in range(5) for outcome in fleet.poll()]
    assert {outcome.request.id for outcome in outcomes} == {"r0", "r2"}
    crew.replaced_by = description(kv_tokens=1600)
    (outcome,) = finish(fleet)
    assert outcome.request.id == "r1"


def test_what_fits_nowhere_is_sent_to_the_roomiest_to_be_refused() -> None:
    crew = MortalCrew([description(), description(kv_tokens=4800)])
    fleet = start(crew)
    fleet.submit([make_request(0, prompt_tokens=5000)])
    finish(fleet)
    assert [request.id for request in crew.sent[1]] == ["r0"]


def test_a_refused_adapter_fails_alone() -> None:
    def describe(request: Request) -> None:
        if request.adapter == "bad":
            raise RowError(RowErrorCode.ADAPTER_REFUSED, "DoRA", request.id)

    fleet = Fleet(
        MortalCrew([description()]), placement("random"), describe, Clock(), NoEvents(), ignore_note
    )
    fleet.submit([make_request(0), make_request(1, "bad")])
    outcomes = finish(fleet)
    (failure,) = (outcome for outcome in outcomes if isinstance(outcome, Failure))
    assert (failure.request.id, failure.code, failure.message) == ("r1", "adapter_refused", "DoRA")
    assert len(outcomes) == 2


def test_another_replica_in_a_dead_ones_place_is_known_by_its_own_sizes() -> None:
    """What runs elsewhere stays where it is, and it takes what it holds."""
    crew = MortalCrew([description(kv_tokens=160), description(kv_tokens=160)])
    crew.replaced_by = description(kv_tokens=1600)
    crew.most_answers = 0
    fleet = start(crew)
    fleet.submit([make_request(number) for number in range(8)])
    fleet.poll()
    before = list(crew.holding[1])
    crew.kill(0)
    fleet.poll()
    fleet.poll()
    assert crew.holding[1][: len(before)] == before
    large = make_request(8, prompt_tokens=1000)
    fleet.submit([large])
    fleet.poll()
    assert large in crew.sent[0]
    crew.most_answers = None
    assert len(finish(fleet)) == 9


def test_dlora_moves_what_is_still_in_the_driver() -> None:
    crew = MortalCrew([description(), description()])
    crew.most_answers = 0
    fleet = start(crew, "dlora")
    # All of one adapter, so that all go to one replica first.
    fleet.submit([make_request(number, "1") for number in range(200)])
    for _ in range(200):
        fleet.poll()
    assert fleet.account.moved > 0
    assert min(map(len, crew.holding)) > 0
    crew.most_answers = None
    assert len(finish(fleet)) == 200


def test_the_driver_counts_what_replicas_tell() -> None:
    records: list[StepRecord] = []

    class Steps:
        def on_step(self, record: StepRecord) -> None:
            records.append(record)

    crew = MortalCrew([description(), description()])
    crew.most_answers = 0
    fleet = Fleet(crew, placement("adapter-affinity"), numbered_adapter, Clock(), Steps(), ignore_note)
    fleet.submit([make_request(0, "3")])
    fleet.poll()
    (home,) = (replica for replica, holding in enumerate(crew.holding) if holding)
    record = StepRecord(
        start_ms=1.0,
        end_ms=4.0,
        num_prefill_tokens=20,
        num_decode_tokens=0,
        num_running=1,
        num_waiting=0,
        num_preempted=0,
        num_cached_tokens=0,
        num_adapter_loads=1,
        adapter_load_ms=0.1,
        num_kv_blocks_used=2,
        num_kv_blocks=200,
    )
    away = 1 - home
    crew.tell(home, ReplicaNews(records=[record], started=["r0"], adapters_left=["3"], num_running=1))
    crew.tell(away, ReplicaNews(adapters_came=["3"]))
    fleet.poll()
    assert records == [dataclasses.replace(record, replica=home)]
    assert fleet.num_running == 1
    account = fleet.account.replicas[home].as_json()
    assert (account["steps"], account["busy_ms"], account["mean_running"]) == (1, 3.0, 1.0)
    fleet.submit([make_request(1, "3")])
    fleet.poll()
    assert [request.id for request in crew.holding[away]] == ["r1"], "where the adapter is now"
    crew.most_answers = None
    finish(fleet)
    fleet.close()
    assert crew.is_closed


def test_placement_goes_by_what_replicas_say_of_their_steps() -> None:
    """Where times are measured: corrections of assumed ones would compare nothing."""
    slow = StepCorrections(decode=StepCorrection(times=50.0), prompts=StepCorrection(times=50.0))
    for profile, expected in ((h200_profile(), 0), (None, 10)):
        crew = MortalCrew([replace(description(), profile=profile)] * 2)
        crew.most_answers = 0
        fleet = start(crew, "rank-aware")
        crew.tell(0, ReplicaNews(corrections=slow))
        fleet.submit([make_request(-1, None)])
        fleet.poll()
        fleet.submit([make_request(number, None) for number in range(20)])
        fleet.poll()
        placed = [sum(request.line >= 0 for request in holding) for holding in crew.holding]
        assert abs(placed[0] - expected) <= 1, placed


def test_times_are_measured_ones_only_if_all_are() -> None:
    profile = h200_profile()
    measured, unknown = replace(description(), profile=profile), description()
    assert all(facts.profile is profile for facts in fleet_facts(["a", "b"], [measured, measured]))
    assert all(facts.profile is not profile for facts in fleet_facts(["a", "b"], [measured, unknown]))


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_that_one_replica_cannot_read_goes_to_the_others(name: str) -> None:
    notes: list[str] = []
    crew = MortalCrew([description(), description()])
    crew.refused = {(0, "3"), (0, "5"), (1, "5")}
    fleet = start(crew, name, notes.append)
    requests = [make_request(number, str(number % 7)) for number in range(300)]
    fleet.submit(requests)
    outcomes = finish(fleet)
    assert_each_once(outcomes, requests)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    assert {failure.request.adapter for failure in failures} == {"5"}, "which nobody can read"
    assert len(failures) == sum(request.adapter == "5" for request in requests)
    refused_at = [note.partition(":")[0] for note in notes if "'3'" in note]
    assert refused_at in ([], ["replica-0 refuses adapter '3', which goes to others"]), "told once"
    # It is known by now, and nobody tries it there any more.
    num_sent = len(crew.sent[0])
    fleet.submit([make_request(number, "3") for number in range(300, 340)])
    assert all(isinstance(outcome, Completion) for outcome in finish(fleet))
    assert not refused_at or len(crew.sent[0]) == num_sent


def test_what_others_refuse_is_known_when_another_size_replaces_a_dead_one() -> None:
    """Only the new one, perhaps on another machine, is asked for an adapter again."""
    crew = MortalCrew([description() for _ in range(3)])
    crew.refused = {(0, "3"), (1, "3")}
    fleet = start(crew)
    fleet.submit([make_request(number, "3") for number in range(12)])
    finish(fleet)
    assert crew.sent[0], "it has refused it"
    num_sent = len(crew.sent[0])
    crew.refused.remove((1, "3"))
    crew.replaced_by = description(kv_tokens=1600)
    crew.most_answers = 0
    fleet.submit([make_request(12)])
    crew.kill(1)
    for _ in range(2):
        fleet.poll()
    assert crew.descriptions[1] == crew.replaced_by
    fleet.submit([make_request(number, "3") for number in range(13, 43)])
    fleet.poll()
    crew.most_answers = None
    finish(fleet)
    assert not [each for each in crew.sent[0][num_sent:] if each.adapter == "3"]
    assert [each for each in crew.sent[1] if each.line >= 13], "it may see what the dead one did not"
