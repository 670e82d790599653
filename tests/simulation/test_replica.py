"""One simulated replica, by hand: 1 ms for a prompt's token and for each that is decoded beside it, 20 ms for
a decoding step, 10 µs for a unit of rank, 1 MB a millisecond."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caraserve_cli.core import ColdStart
from caraserve_cli.simulation.simulated_request import Answered
from tests.perf.h200 import adapter_bytes
from tests.placement.fleets import MB, replica, step_model
from tests.simulation.fleets import adapter, answers_of, simulated


def _times(answered: Answered) -> tuple[float, float]:
    return answered.first_token_ms, answered.last_token_ms


def test_one_request() -> None:
    """Its prompt of 30 tokens, then nine steps."""
    answers = answers_of([simulated("a", 100, 30, 10)], [replica("r")])
    assert _times(answers["a"]) == pytest.approx((130, 130 + 9 * 20))
    assert answers["a"].ttft_ms == pytest.approx(30)
    assert answers["a"].time_per_token_ms == pytest.approx(21)
    assert answers["a"].tpot_ms == pytest.approx(20)


def test_who_arrives_within_a_step_begins_after_it_and_prompts_interrupt() -> None:
    """At 155, in the step from 150 to 170: that ends, and the next is its prompt's, with a token of the
    first."""
    answers = answers_of([simulated("a", 100, 30, 10), simulated("b", 155, 40, 3)], [replica("r")])
    assert _times(answers["b"]) == pytest.approx((170 + 41, 211 + 40))
    # 130 with its prompt, 150, 170, 211, 231 … 231 + 5 · 20
    assert _times(answers["a"]) == pytest.approx((130, 231 + 5 * 20))


def test_who_arrives_together_is_computed_together() -> None:
    answers = answers_of([simulated("a", 0, 30, 2), simulated("b", 0, 10, 2)], [replica("r")])
    assert {_times(each) for each in answers.values()} == {(40, 60)}


def test_a_long_prompt_takes_its_chunks() -> None:
    """512, 512 and 76 tokens."""
    answers = answers_of([simulated("a", 0, 1100, 1)], [replica("r")])
    assert _times(answers["a"]) == pytest.approx((1100, 1100))
    assert answers["a"].tpot_ms is None


def test_a_chunk_of_one_token_is_still_of_the_prompt() -> None:
    """512 tokens, the one that is left, and a decoding step."""
    answers = answers_of([simulated("a", 0, 513, 2)], [replica("r")])
    assert _times(answers["a"]) == pytest.approx((513, 533))


def test_tokens_in_the_cache_make_steps_longer() -> None:
    """Steps read 31, 32 … 39 tokens at 1 ms each."""
    model = replace(step_model(), kv_token_ms=1.0)
    answers = answers_of([simulated("a", 0, 30, 10)], [replica("r", model)])
    assert answers["a"].last_token_ms == pytest.approx(30 + 9 * 20 + sum(range(31, 40)))


def test_adapters_count_once_each() -> None:
    """Ranks 64 and 8: 0.72 ms in every step, whoever has them."""
    big, small = adapter("big", 64, 256), adapter("small", 8, 256)
    requests = [simulated("a", 0, 10, 3, big), simulated("b", 0, 10, 3, big), simulated("c", 0, 10, 3, small)]
    answers = answers_of(requests, [replica("r")], cold_start="stream")
    # Their few bytes come in less than a microsecond.
    assert answers["c"].last_token_ms == pytest.approx(30.72 + 2 * 20.72, abs=1e-3)


def test_on_demand_waits_for_all_of_the_adapter() -> None:
    """256 MB take 256 ms; the copies of the second begin when the first ones have come."""
    requests = [simulated("a", 0, 10, 2, adapter("x", 8)), simulated("b", 0, 10, 2, adapter("y", 8))]
    answers = answers_of(requests, [replica("r")])
    assert _times(answers["a"]) == pytest.approx((256 + 10.08, 256 + 10.08 + 20.08))
    assert {each.cold_start for each in answers.values()} == {ColdStart.ON_DEMAND}
    # 512 ms: within the steps of the first one it came later.
    assert answers["b"].first_token_ms == pytest.approx(512 + 10.08)


def test_on_demand_lets_others_go_on_and_blocking_does_not() -> None:
    requests = [simulated("base", 0, 10, 20), simulated("cold", 15, 10, 2, adapter("x", 8))]
    waiting = answers_of(requests, [replica("r")], cold_start="on-demand")
    assert waiting["base"].last_token_ms < 10 + 19 * 20 + 30
    blocking = answers_of(requests, [replica("r")], cold_start="on-demand-blocking")
    assert blocking["cold"].first_token_ms == pytest.approx(30 + 256 + 11.08)
    assert blocking["base"].last_token_ms == pytest.approx(blocking["cold"].first_token_ms + 17 * 20 + 0.08)


def test_a_stream_hides_what_its_prefill_takes() -> None:
    """64 MB in 32 layers of 2 ms beneath a prefill of 32 layers of 3.1 ms: only the first is waited for."""
    request = simulated("a", 0, 100, 2, adapter("x", 8, 64 * MB))
    answers = answers_of([request], [replica("r")], cold_start="stream")
    assert answers["a"].first_token_ms == pytest.approx(100.08 + 2)
    # 320 MB in layers of 10 ms: the last layer comes then.
    request = simulated("a", 0, 100, 2, adapter("x", 8, 320 * MB))
    answers = answers_of([request], [replica("r")], cold_start="stream")
    assert answers["a"].first_token_ms == pytest.approx(320 + 100.08 / 32)


def test_a_resident_adapter_is_not_copied_again() -> None:
    requests = [simulated("a", 0, 10, 2, adapter("x", 8)), simulated("b", 1000, 10, 2, adapter("x", 8))]
    answers = answers_of(requests, [replica("r")])
    assert answers["b"].first_token_ms == pytest.approx(1010.08)
    assert answers["b"].cold_start is ColdStart.RESIDENT


def test_cpu_workers_give_a_token_before_the_adapter_has_come() -> None:
    """134 MB on q, k, v, o take 134 ms; the second token waits for them, and for the workers' results before
    them on the link: 16 tokens of 4 x 4096 elements in all 32 layers."""
    request = simulated("a", 0, 16, 2, adapter("x", 64, adapter_bytes(64)))
    facts = replica("r", num_cpu_workers=8)
    assisted = answers_of([request], [facts], cold_start="cpu-assist")["a"]
    assert assisted.cold_start is ColdStart.CPU_ASSIST
    waiting = answers_of([request], [facts], cold_start="on-demand")["a"]
    copy_ms, results_ms = adapter_bytes(64) / MB, 16 * 4 * 4096 * 2 * 32 / MB
    assert waiting.first_token_ms == pytest.approx(copy_ms + 16.64)
    assert 16.64 < assisted.first_token_ms < waiting.first_token_ms / 2
    assert assisted.last_token_ms == pytest.approx(copy_ms + results_ms + 20.64)


def test_one_token_by_cpu_workers_alone_is_followed_by_no_copy() -> None:
    """Over a link that brings 134 MB in 134 ms; the next adapter's copies begin when that is asked for."""
    first = simulated("a", 0, 16, 1, adapter("x", 64, adapter_bytes(64)))
    ending = replace(first, max_output_tokens=1)
    second = simulated("b", 60, 16, 2, adapter("y", 64, adapter_bytes(64)))
    facts = replica("r", num_cpu_workers=8)
    spared = answers_of([ending, second], [facts], cold_start="auto")
    loaded = answers_of([first, second], [facts], cold_start="auto")
    assert spared["a"].cold_start is ColdStart.CPU_ASSIST
    assert spared["a"].last_token_ms == pytest.approx(loaded["a"].first_token_ms, rel=0.1)
    assert spared["b"].last_token_ms < loaded["b"].last_token_ms - 30
