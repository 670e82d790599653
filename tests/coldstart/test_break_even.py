"""The break-even model with the figures of hardware.md: who wins where, and what may never be."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.coldstart.arrival import Arrival, Decision
from caraserve_cli.coldstart.break_even import BreakEven, Prediction
from caraserve_cli.core import ColdStart
from caraserve_cli.perf.profile import MachineProfile
from tests.coldstart.arrivals import alone, arrival
from tests.perf.h200 import h200_profile

GBPS = (3.0, 6.0, 12.0, 25.0, None)
PROMPTS = (16, 128, 512)
RANKS = (8, 64, 128)


@cache
def machine(gbps: float | None = None) -> MachineProfile:
    profile = h200_profile()
    return profile if gbps is None else profile.emulated(gbps)


def model(gbps: float | None = None) -> BreakEven:
    return BreakEven(machine(gbps))


def way(break_even: BreakEven, of: Arrival, how: ColdStart, *, held: bool = False) -> Prediction:
    """The one with most layers on CPU workers."""
    return [
        each
        for each in break_even.ways(of)
        if each.decision.how is how and (each.decision.hold_ms > 0) == held
    ][-1]


arrivals = st.builds(
    arrival,
    prompt_tokens=st.integers(1, 2000),
    lora_rank=st.integers(1, 256),
    max_output_tokens=st.integers(1, 500),
    num_decoding=st.integers(0, 64),
    link_backlog_ms=st.floats(0, 200),
    free_workers=st.integers(0, 15),
    can_assist=st.booleans(),
    beside_wait_ms=st.one_of(st.none(), st.floats(0, 200)),
    may_spare_load=st.booleans(),
    is_link_wanted=st.booleans(),
)


def test_a_fast_link_streams() -> None:
    """128 tokens, rank 64 over 55 GB/s: an adapter hides beneath its own prefill."""
    best = model().best(arrival())
    assert best.decision == Decision(ColdStart.STREAM)
    assert best.stall_ms < 0.2


def test_a_slow_link_and_a_short_prompt_are_assisted() -> None:
    cold = alone(prompt_tokens=16)
    best = model(3).best(cold)
    assert best.decision.how is ColdStart.CPU_ASSIST
    assert 8 <= best.decision.cpu_layers < 32
    assert best.ttft_ms < 0.6 * way(model(3), cold, ColdStart.STREAM).ttft_ms


def test_beside_others_it_is_assisted_as_far_as_they_do_not_suffer() -> None:
    cold = arrival(prompt_tokens=16, num_decoding=4)
    best, held = model(3).best(cold), way(model(3), cold, ColdStart.STREAM, held=True)
    assert best.decision.how is ColdStart.CPU_ASSIST
    assert best.decision.hold_ms > 0
    assert best.ttft_ms < 0.93 * held.ttft_ms
    assert model(3).cost_ms(cold, best) < model(3).cost_ms(cold, held)


def test_over_a_slow_link_a_short_prompt_is_assisted_beside_the_others() -> None:
    cold = arrival(prompt_tokens=16, beside_wait_ms=0.0)
    best, without = model(3).best(cold), model(3).best(replace(cold, beside_wait_ms=None))
    assert best.decision.how is ColdStart.CPU_ASSIST
    assert best.decision.beside_ms > 0
    assert not best.decision.hold_ms
    assert best.ttft_ms < 0.9 * without.ttft_ms
    # Others lose a pass of the base, beyond what the prompt would have added to theirs.
    assert best.stall_ms <= 1.001 * machine(3).prefill.step_ms(16)


def test_nobody_waits_long_for_room_beside_the_others() -> None:
    best = model(3).best(arrival(prompt_tokens=16, beside_wait_ms=100.0))
    assert not best.decision.beside_ms


def test_what_has_come_while_it_waited_is_there() -> None:
    """Room is there when all has been copied: what is left is the prefill, at its pace beside the others."""
    cold = arrival(prompt_tokens=16, beside_wait_ms=200.0)
    beside = [each for each in model(3).ways(cold) if each.decision.beside_ms]
    streamed = next(each for each in beside if not each.decision.cpu_layers)
    prefill_ms, step_ms = machine(3).prefill.step_ms(16), machine(3).decode.step_ms(8)
    assert streamed.ttft_ms == pytest.approx(200.0 + 2 * prefill_ms + step_ms / 2)
    assert streamed.decision.beside_ms == pytest.approx(2 * prefill_ms)


def test_alone_nothing_is_beside_anything() -> None:
    assert not any(each.decision.beside_ms for each in model(3).ways(alone(beside_wait_ms=0.0)))


def test_a_slow_link_and_a_long_prompt_are_not() -> None:
    """512 tokens' results would take the link longer than the adapter does."""
    assert model(3).best(arrival(prompt_tokens=512, lora_rank=8)).decision.how is not ColdStart.CPU_ASSIST


@pytest.mark.parametrize(("prompt_tokens", "lora_rank"), itertools.product(PROMPTS, RANKS))
@pytest.mark.parametrize("gbps", GBPS)
def test_no_way_costs_less(gbps: float | None, prompt_tokens: int, lora_rank: int) -> None:
    """The sum of the arrival's TTFT and half of what the 8 others lose; within 1% the least of the latter."""
    break_even, cold = model(gbps), arrival(prompt_tokens=prompt_tokens, lora_rank=lora_rank)
    ways, best = break_even.ways(cold), break_even.best(cold)
    costs_ms = [each.ttft_ms + 4 * each.stall_ms for each in ways]
    assert best.ttft_ms + 4 * best.stall_ms <= 1.01 * min(costs_ms)
    for each, cost_ms in zip(ways, costs_ms, strict=True):
        if cost_ms <= 1.01 * min(costs_ms):
            assert best.stall_ms <= each.stall_ms


def test_the_more_others_there_are_the_less_each_is_delayed() -> None:
    colds = [arrival(prompt_tokens=16, lora_rank=128, num_decoding=count) for count in (0, 1, 4, 8, 32)]
    bests = [model(3).best(cold) for cold in colds]
    stalls_ms, ttfts_ms = [best.stall_ms for best in bests], [best.ttft_ms for best in bests]
    assert stalls_ms == sorted(stalls_ms, reverse=True)
    assert ttfts_ms == sorted(ttfts_ms)
    assert stalls_ms[0] > 10
    assert stalls_ms[-1] < 1


def test_nobody_waits_where_holding_helps() -> None:
    """Long prompts over a slow link: the arrival's TTFT is the link's in any case, and the others go on."""
    cold = arrival(prompt_tokens=128, lora_rank=128)
    held = way(model(3), cold, ColdStart.STREAM, held=True)
    stream = way(model(3), cold, ColdStart.STREAM)
    assert held.stall_ms < 0.02 * stream.stall_ms
    assert held.ttft_ms < 1.03 * stream.ttft_ms
    assert held.ttft_ms < way(model(3), cold, ColdStart.ON_DEMAND).ttft_ms


def test_alone_on_a_machine_nothing_is_held() -> None:
    """There is nobody to hold it for."""
    assert all(not each.decision.hold_ms for each in model(3).ways(alone()))
    assert model(25).best(alone(can_assist=False)).decision == Decision(ColdStart.STREAM)


def test_equal_ways_have_an_order() -> None:
    """Where nothing is copied all ways are equal; CPU workers are left alone and nobody waits."""
    no_link = BreakEven(replace(machine(), link=None, exchange=None))
    assert no_link.best(alone()).decision == Decision(ColdStart.STREAM)
    assert no_link.best(arrival()).decision == Decision(ColdStart.STREAM)


def test_one_token_needs_no_adapter_on_the_device() -> None:
    first, more = arrival(prompt_tokens=16, max_output_tokens=1), arrival(prompt_tokens=16)
    ends = way(model(3), first, ColdStart.CPU_ASSIST)
    goes_on = way(model(3), more, ColdStart.CPU_ASSIST)
    assert ends.ttft_ms == goes_on.ttft_ms == ends.complete_ms
    assert goes_on.complete_ms > 2 * goes_on.ttft_ms


def ending(**changes: Any) -> Arrival:
    """An arrival of 16 tokens alone that ends with its first one, and whose adapter nobody else wants."""
    usual = {"prompt_tokens": 16, "max_output_tokens": 1, "may_spare_load": True}
    return alone(**{**usual, **changes})


SPARED = Decision(ColdStart.CPU_ASSIST, 32, spares_load=True)


def test_behind_a_backlog_nothing_is_loaded_that_need_not_be() -> None:
    """CPU workers compute all layers anyway: the same time to the first token, and no copies."""
    cold = ending(link_backlog_ms=100.0)
    best, loaded = model(3).best(cold), model(3).best(replace(cold, may_spare_load=False))
    assert best.decision == model(3).assisted(cold) == SPARED
    assert loaded.decision == Decision(ColdStart.CPU_ASSIST, 32)
    assert best.ttft_ms == loaded.ttft_ms == best.complete_ms


def test_what_is_faster_over_a_free_link_is_loaded() -> None:
    for cold in (ending(prompt_tokens=128), ending(prompt_tokens=512)):
        assert model().best(cold).decision == model().best(replace(cold, may_spare_load=False)).decision
        assert not model().assisted(cold).spares_load


def test_the_link_is_left_to_who_waits_for_it() -> None:
    """Some milliseconds more to the first token against the tens that the next adapter comes later."""
    free, wanted = ending(), ending(is_link_wanted=True)
    loaded, spared = model(3).best(free), model(3).best(wanted)
    assert not loaded.decision.spares_load
    assert loaded.decision.cpu_layers < 32
    assert spared.decision == model(3).assisted(wanted) == SPARED
    copy_ms = wanted.adapter_bytes / 3e6
    assert loaded.ttft_ms < spared.ttft_ms < loaded.ttft_ms + copy_ms / 2


def test_without_a_load_cpu_workers_are_waited_for_in_all_chunks() -> None:
    first, long = ending(prompt_tokens=512), ending(prompt_tokens=512 + 512 + 100)

    def spared(cold: Arrival) -> Prediction:
        return next(each for each in model(3).ways(cold) if each.decision.spares_load)

    rest = spared(ending(prompt_tokens=100))
    assert spared(long).ttft_ms == pytest.approx(2 * spared(first).ttft_ms + rest.ttft_ms)
    assert spared(long).stall_ms == pytest.approx(2 * spared(first).stall_ms + rest.stall_ms)


@given(arrivals, st.sampled_from(GBPS))
def test_only_who_may_is_not_loaded(cold: Arrival, gbps: float | None) -> None:
    for each in model(gbps).ways(cold):
        assert not each.decision.spares_load or (cold.may_spare_load and each.decision.cpu_layers == 32)
    assert not model(gbps).assisted(replace(cold, may_spare_load=False)).spares_load


def test_a_long_prompt_pays_for_all_its_chunks() -> None:
    """Copies hide under the first chunk; the later ones are the same whatever the way."""
    break_even, tokens = model(), 512 + 512 + 100
    step_ms = machine().prefill.step_ms
    later_ms = step_ms(520) + step_ms(108)
    stream = way(break_even, arrival(prompt_tokens=tokens), ColdStart.STREAM)
    first = way(break_even, arrival(prompt_tokens=512), ColdStart.STREAM)
    assert stream.ttft_ms == pytest.approx(first.ttft_ms + later_ms)


@given(arrivals)
def test_never_assisted_where_it_cannot_be(cold: Arrival) -> None:
    for gbps in (3, None):
        for impossible in (replace(cold, can_assist=False), replace(cold, free_workers=0)):
            ways = model(gbps).ways(impossible)
            assert all(each.decision.how is not ColdStart.CPU_ASSIST for each in ways)
    without = BreakEven(replace(machine(3), cpu_lora=None))
    assert without.best(cold).decision.how is not ColdStart.CPU_ASSIST


@given(arrivals, st.floats(1, 40), st.floats(1, 40))
def test_a_slower_link_never_makes_a_way_better(cold: Arrival, a_gbps: float, b_gbps: float) -> None:
    slow, fast = (BreakEven(machine().emulated(gbps)) for gbps in sorted((a_gbps, b_gbps)))
    for how in (ColdStart.STREAM, ColdStart.ON_DEMAND):
        assert way(slow, cold, how).ttft_ms >= way(fast, cold, how).ttft_ms - 1e-9
    stalls = [way(each, cold, ColdStart.STREAM).stall_ms for each in (slow, fast)]
    assert stalls[0] >= stalls[1] - 1e-9


@given(arrivals, st.floats(0, 100))
def test_a_longer_backlog_never_makes_a_way_better(cold: Arrival, more_ms: float) -> None:
    later = replace(cold, link_backlog_ms=cold.link_backlog_ms + more_ms)
    for how in (ColdStart.STREAM, ColdStart.ON_DEMAND):
        assert way(model(), later, how).ttft_ms >= way(model(), cold, how).ttft_ms
    assert model().fewest_cpu_layers(later) >= model().fewest_cpu_layers(cold)


@given(arrivals, st.floats(1, 40))
def test_the_speed_that_was_seen_counts_before_that_of_the_profile(cold: Arrival, gbps: float) -> None:
    seen, told = model().race(replace(cold, link_bytes_per_ms=gbps * 1e6)), model(gbps).race(cold)
    assert seen.copy_layer_ms == pytest.approx(told.copy_layer_ms)
    assert seen.result_layer_ms == pytest.approx(told.result_layer_ms)


@given(arrivals, st.integers(0, 10**9))
def test_bytes_ahead_are_a_backlog_and_bytes_beside_a_larger_adapter(cold: Arrival, num_bytes: int) -> None:
    link = machine().link
    assert link is not None
    backlog_ms = cold.link_backlog_ms + num_bytes / link.bytes_per_ms
    ahead = model().race(replace(cold, ahead_bytes=num_bytes))
    assert ahead == model().race(replace(cold, link_backlog_ms=backlog_ms))
    alone, beside = model().race(cold), model().race(replace(cold, together_bytes=num_bytes))
    more_ms = num_bytes / cold.num_layers / link.bytes_per_ms
    assert beside.copy_layer_ms == pytest.approx(alone.copy_layer_ms + more_ms)
    assert beside.cpu_layer_ms == alone.cpu_layer_ms, "workers compute this one's adapter"


@given(arrivals, st.integers(0, 10**9))
def test_who_is_held_comes_after_all_that_is_loaded_with_it(cold: Arrival, num_bytes: int) -> None:
    """And so does who waits for all; who prefills at once shares the link with the others."""
    beside, behind = replace(cold, together_bytes=num_bytes), replace(cold, ahead_bytes=num_bytes)
    assert model().race(beside, in_turn=True) == model().race(behind)
    on_demand = (model().ways(each)[-1] for each in (beside, behind))
    assert len({each.ttft_ms for each in on_demand}) == 1
    held_beside, held_behind = (
        {each.decision.cpu_layers: each.ttft_ms for each in model().ways(way) if each.decision.hold_ms}
        for way in (beside, behind)
    )
    for cpu_layers in held_beside.keys() & held_behind.keys():
        assert held_beside[cpu_layers] == held_behind[cpu_layers]


@given(arrivals, st.sampled_from(GBPS))
def test_predictions_make_sense(cold: Arrival, gbps: float | None) -> None:
    for each in model(gbps).ways(cold):
        assert each.ttft_ms > 0
        assert each.stall_ms >= -1e-9
        assert each.complete_ms >= each.ttft_ms
        assert 0 <= each.decision.cpu_layers <= cold.num_layers
    assert model(gbps).best(cold) == model(gbps).best(cold)


@given(arrivals, st.sampled_from(GBPS))
def test_cpu_workers_compute_the_fewest_pieces(cold: Arrival, gbps: float | None) -> None:
    race = model(gbps).race(cold)
    ends = [0, *(end for _, end in LayerOrder().groups(race.num_layers))]
    assert model(gbps).fewest_cpu_layers(cold) == next(end for end in ends if race.never_waits(end))
    assert {each.decision.cpu_layers for each in model(gbps).ways(cold)} <= set(ends)


@given(arrivals, st.sampled_from(GBPS))
def test_held_requests_delay_the_others_less_and_come_hardly_later(cold: Arrival, gbps: float | None) -> None:
    ways = model(gbps).ways(cold)
    off_ms = machine(gbps).decode.step_ms(cold.num_decoding) / 8
    for held in (each for each in ways if each.decision.hold_ms):
        at_once = next(
            each
            for each in ways
            if each.decision.cpu_layers == held.decision.cpu_layers and not each.decision.hold_ms
        )
        assert held.stall_ms < at_once.stall_ms
        assert held.ttft_ms == pytest.approx(at_once.ttft_ms + off_ms)


@pytest.mark.parametrize("changes", [{"lora_rank": 0}, {"adapter_bytes": 1}, {"prompt_tokens": 1}])
def test_odd_arrivals_are_predicted_too(changes: dict[str, Any]) -> None:
    assert model(3).best(replace(arrival(), **changes)).ttft_ms > 0
