"""Replicas that plan steps ahead and compute prompts beside the others, as a GPU's runner does, by hand: 1 ms
for a prompt's token and for each that is decoded beside it, 20 ms for a decoding step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caraserve_cli.core import ColdStart
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.simulation.steps_ahead import BesideStep
from tests.placement.fleets import MB, PROFILE, replica
from tests.simulation.fleets import adapter, answers_of, simulated, small_fleet, small_requests

AHEAD = replace(replica("r"), steps_in_flight=2)


def _ahead(replicas: list[ReplicaFacts]) -> list[ReplicaFacts]:
    return [replace(each, steps_in_flight=2, beside_tokens=512) for each in replicas]


def test_one_request_takes_as_long_as_without() -> None:
    (answered,) = answers_of([simulated("a", 100, 30, 10)], [AHEAD]).values()
    assert (answered.first_token_ms, answered.last_token_ms) == pytest.approx((130, 130 + 9 * 20))


@pytest.mark.parametrize("most_equal_steps", [0, 2**31])
def test_who_arrives_waits_for_the_step_that_is_planned_already(most_equal_steps: int) -> None:
    """At 155, in the step from 150 to 170; that from 170 to 190 is planned. Then comes its prompt, with a
    token of the first: 190, 231, 251 … 331."""
    requests = [simulated("a", 100, 30, 10), simulated("b", 155, 40, 3)]
    answers = answers_of(requests, [AHEAD], most_equal_steps=most_equal_steps)
    assert answers["b"].first_scheduled_ms == pytest.approx(170)
    assert (answers["b"].first_token_ms, answers["b"].last_token_ms) == pytest.approx((231, 231 + 40))
    assert answers["a"].last_token_ms == pytest.approx(331)


def test_a_step_for_an_answer_that_has_ended_is_waited_for() -> None:
    """Tokens at 30 and 50. That the second ends the answer nobody knows when the step from 50 to 70 is
    planned, unless no more were allowed."""
    first, second = simulated("a", 0, 30, 2), simulated("b", 55, 10, 1)
    assert answers_of([first, second], [AHEAD])["b"].first_token_ms == pytest.approx(80)
    known = replace(first, max_output_tokens=2)
    assert answers_of([known, second], [AHEAD])["b"].first_token_ms == pytest.approx(65)


def test_copies_begin_while_the_step_before_is_computed() -> None:
    """64 MB take 64 ms from 20 on, when its step is planned, which begins at 40: the copy is waited for until
    84, but for the layers beneath which it goes on."""
    requests = [simulated("base", 0, 20, 20), simulated("cold", 5, 10, 2, adapter("x", 8, 64 * MB))]
    streamed = answers_of(requests, [AHEAD], cold_start="stream")["cold"]
    assert streamed.cold_start is ColdStart.STREAM
    assert streamed.first_token_ms == pytest.approx(20 + 64 + 11.08 / 32)


@pytest.mark.parametrize("cold_start", ["auto", "stream", "cpu-assist", "on-demand", "on-demand-blocking"])
@pytest.mark.parametrize(("rate_per_s", "kv_tokens"), [(4, 2400), (20, 960)])
def test_steps_at_once_take_the_time_of_steps_one_by_one(
    cold_start: str, rate_per_s: float, kv_tokens: int
) -> None:
    requests = small_requests(rate_per_s=rate_per_s, num_requests=60)
    one_by_one, *others = (
        answers_of(
            requests,
            _ahead(small_fleet(2, kv_tokens=kv_tokens)),
            "random",
            cold_start=cold_start,
            scheduling="slack",
            most_equal_steps=most,
            check=True,
        )
        for most in (0, 3, 2**31)
    )
    for at_once in others:
        for name, answered in one_by_one.items():
            other = at_once[name]
            assert other.first_token_ms == pytest.approx(answered.first_token_ms, rel=1e-9)
            assert other.last_token_ms == pytest.approx(answered.last_token_ms, rel=1e-9)
            assert other.num_preemptions == answered.num_preemptions


def test_two_steps_share_the_device() -> None:
    """From 10 to 50 the one beside has a quarter of it: 30 ms are done in 40."""
    beside = BesideStep((), 10, 50, 0.25)
    assert beside.other_end_ms(10, 15) == pytest.approx(30)
    assert beside.other_end_ms(10, 36) == pytest.approx(56)
    assert beside.other_end_ms(30, 30) == pytest.approx(65)
    assert beside.other_end_ms(60, 30) == pytest.approx(90)
    assert beside.other_end_ms(0, 8) == pytest.approx(8)
    assert beside.other_end_ms(0, 25) == pytest.approx(30)


def test_a_prompt_beside_the_others_has_them_go_on() -> None:
    """640 MB take 640 ms: in the batch its prompt of 60 tokens has all wait for it."""
    machine = replica("r", pool_bytes=1000 * MB)
    machine = replace(machine, profile=replace(PROFILE, cpu_lora=None), steps_in_flight=2)
    requests = [simulated(f"base {number}", number, 10, 60) for number in range(4)]
    requests.append(simulated("cold", 300, 60, 2, adapter("x", 8, 640 * MB)))
    apart = answers_of(requests, [replace(machine, beside_tokens=512)], cold_start="auto", check=True)
    streamed = answers_of(requests, [machine], cold_start="stream")
    assert apart["cold"].cold_start is ColdStart.STREAM
    for number in range(4):
        assert apart[f"base {number}"].last_token_ms < streamed[f"base {number}"].last_token_ms - 200
    assert apart["cold"].ttft_ms > 0


def test_the_host_between_two_steps_takes_its_time_where_none_is_planned_ahead() -> None:
    """2 ms: 130, 152, 174 …; who comes in the step from 132 to 152 is computed from 154 on."""
    profile = replace(PROFILE, between_steps_ms=2.0)
    requests = [simulated("a", 100, 30, 10), simulated("b", 140, 40, 2)]
    for most_equal_steps in (0, 2**31):
        answers = answers_of(
            requests, [replace(replica("r"), profile=profile)], most_equal_steps=most_equal_steps
        )
        assert answers["b"].first_token_ms == pytest.approx(154 + 41)
        assert answers["a"].last_token_ms == pytest.approx(195 + 7 * 22)
    alone = answers_of(requests[:1], [replace(AHEAD, profile=profile)])["a"]
    assert alone.last_token_ms == pytest.approx(130 + 9 * 20)
