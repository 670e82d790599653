"""The race against the same race run layer by layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caraserve_cli.coldstart.layer_race import LayerRace

# Sixteenths of a millisecond: sums of them are exact, so that a tie is a tie.
SIXTEENTHS = st.integers(1, 64).map(lambda n: n / 16)


@st.composite
def races(draw: st.DrawFn) -> LayerRace:
    gpu_ms, beyond_ms, copy_ms = draw(SIXTEENTHS), draw(SIXTEENTHS), draw(SIXTEENTHS)
    result_ms = draw(st.integers(0, int(16 * (gpu_ms + beyond_ms))).map(lambda n: n / 16))
    begin_ms = draw(st.integers(0, 640).map(lambda n: n / 16))
    return LayerRace(draw(st.integers(1, 40)), gpu_ms, gpu_ms + beyond_ms, copy_ms, result_ms, begin_ms)


def run(race: LayerRace, cpu_layers: int) -> tuple[float, float, float]:
    """Milliseconds of the prefill, of them waited for the link, and until all layers are there."""
    copied_ms, link_ms = {}, race.copies_begin_ms + cpu_layers * race.result_layer_ms
    for layer in [*range(cpu_layers, race.num_layers), *range(cpu_layers)]:
        link_ms += race.copy_layer_ms
        copied_ms[layer] = link_ms
    now_ms = waited_ms = 0.0
    for layer in range(race.num_layers):
        if layer < cpu_layers:
            now_ms += race.cpu_layer_ms
            continue
        waited_ms += max(0.0, copied_ms[layer] - now_ms)
        now_ms = max(now_ms, copied_ms[layer]) + race.gpu_layer_ms
    return now_ms, waited_ms, link_ms


@given(races())
def test_the_fewest_cpu_layers_are_those_of_the_simulation(race: LayerRace) -> None:
    waits = [run(race, cpu_layers)[1] > 0 for cpu_layers in range(race.num_layers + 1)]
    assert race.fewest_cpu_layers() == waits.index(False)
    assert [not race.never_waits(cpu_layers) for cpu_layers in range(race.num_layers + 1)] == waits


@given(races(), st.data())
def test_times_are_those_of_the_simulation(race: LayerRace, data: st.DataObject) -> None:
    cpu_layers = data.draw(st.integers(0, race.num_layers))
    prefill_ms, waited_ms, complete_ms = run(race, cpu_layers)
    assert race.prefill_ms(cpu_layers) == prefill_ms
    assert race.complete_ms(cpu_layers) == complete_ms
    beyond_ms = cpu_layers * (race.cpu_layer_ms - race.gpu_layer_ms)
    assert race.stall_ms(cpu_layers) == pytest.approx(beyond_ms + waited_ms)


@given(races(), st.data())
def test_a_prefill_that_was_held_waits_no_more(race: LayerRace, data: st.DataObject) -> None:
    cpu_layers = data.draw(st.integers(0, race.num_layers))
    hold_ms = race.hold_ms(cpu_layers)
    late = replace(race, copies_begin_ms=race.copies_begin_ms - hold_ms)
    assert run(late, cpu_layers)[1] == 0
    assert run(late, cpu_layers)[0] == race.computing_ms(cpu_layers)
    if cpu_layers == race.num_layers:
        return
    sooner = replace(race, copies_begin_ms=race.copies_begin_ms - hold_ms + 1 / 16)
    assert run(sooner, cpu_layers)[1] > 0
    if hold_ms >= 0:
        assert hold_ms + run(late, cpu_layers)[0] == run(race, cpu_layers)[0]


@given(races(), SIXTEENTHS)
def test_a_slower_link_never_makes_anything_shorter(race: LayerRace, slower_ms: float) -> None:
    slow = replace(race, copy_layer_ms=race.copy_layer_ms + slower_ms)
    assert slow.stall_ms(0) >= race.stall_ms(0)
    assert slow.hold_ms(0) >= race.hold_ms(0)
    assert slow.fewest_cpu_layers() >= race.fewest_cpu_layers()


@given(races())
def test_without_a_link_nothing_waits(race: LayerRace) -> None:
    there = replace(race, copy_layer_ms=0.0)
    assert there.fewest_cpu_layers() == 0
    assert (there.stall_ms(0), there.complete_ms(0), there.hold_ms(0)) == (0, 0, 0)
