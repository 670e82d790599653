"""What arrival processes draw, by its statistics: seeds are fixed, so nothing here is by chance."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from caraserve_cli.requests.arrival_process import Arrival, gamma_ms, poisson_ms, trace_arrivals
from caraserve_cli.requests.arrival_trace import ArrivalTrace
from tests.requests.traces import write_trace

NUM_GAPS = 20_000
MINUTE_MS = 60_000
COUNTS = {"f": [40, 0, 7], "g": [10, 0, 0], "h": [0, 0, 30]}


def gaps_ms(times_ms: Iterator[float]) -> list[float]:
    return [after - before for before, after in pairwise([0.0, *islice(times_ms, NUM_GAPS)])]


def test_poisson_gaps_are_exponential() -> None:
    """Mean and standard deviation are the same, and the median is ln 2 of them."""
    gaps = sorted(gaps_ms(poisson_ms(random.Random(7), 40.0)))
    assert fmean(gaps) == pytest.approx(25, rel=0.03)
    assert pstdev(gaps) == pytest.approx(25, rel=0.03)
    assert gaps[NUM_GAPS // 2] == pytest.approx(25 * 0.693, rel=0.03)


@pytest.mark.parametrize("burstiness", [0.1, 0.5, 1.0, 2.0, 4.0])
def test_gamma_gaps_have_the_mean_of_the_rate_and_the_burstiness(burstiness: float) -> None:
    gaps = gaps_ms(gamma_ms(random.Random(7), 40.0, burstiness))
    assert fmean(gaps) == pytest.approx(25, rel=0.03 * max(burstiness, 1))
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(burstiness, rel=0.05)
    assert all(gap >= 0 for gap in gaps)


def test_gamma_of_burstiness_1_is_poisson() -> None:
    poisson, gamma = poisson_ms(random.Random(3), 9.0), gamma_ms(random.Random(3), 9.0, 1.0)
    assert list(islice(gamma, 100)) == pytest.approx(list(islice(poisson, 100)))


@pytest.mark.parametrize("burstiness", [0.01, 100.0])
def test_the_ends_of_burstiness_can_be_drawn(burstiness: float) -> None:
    times_ms = list(islice(gamma_ms(random.Random(1), 9.0, burstiness), 1000))
    assert times_ms == sorted(times_ms)


@pytest.fixture
def trace(tmp_path: Path) -> ArrivalTrace:
    return ArrivalTrace.read(write_trace(tmp_path / "t.csv", COUNTS))


def draw(
    trace: ArrivalTrace, rounds: int = 1, seed: str = "s", rate_per_s: float | None = None
) -> list[Arrival]:
    return list(islice(trace_arrivals(trace, seed, rate_per_s), rounds * trace.num_invocations))


def test_a_trace_gives_each_minute_and_function_exactly_its_counts(trace: ArrivalTrace) -> None:
    """f, g and h have popularity 0, 2 and 1. After the last minute it begins anew."""
    drawn = draw(trace, rounds=2)
    counted = Counter((int(arrival.ms // MINUTE_MS), arrival.function) for arrival in drawn)
    first = {(0, 0): 40, (0, 2): 10, (2, 0): 7, (2, 1): 30}
    assert counted == first | {(minute + 3, function): count for (minute, function), count in first.items()}
    assert [arrival.ms for arrival in drawn] == sorted(arrival.ms for arrival in drawn)
    assert [arrival.ms + 3 * MINUTE_MS for arrival in drawn[:87]] != [arrival.ms for arrival in drawn[87:]]


def test_times_are_uniform_within_the_minute_and_functions_come_mixed(tmp_path: Path) -> None:
    trace = ArrivalTrace.read(write_trace(tmp_path / "t.csv", {"f": [6000], "g": [2000]}))
    drawn = draw(trace)
    tenths = Counter(int(arrival.ms / MINUTE_MS * 10) for arrival in drawn)
    assert [tenths[tenth] for tenth in range(10)] == pytest.approx([800] * 10, rel=0.12)
    gaps = [after.ms - before.ms for before, after in pairwise(drawn)]
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(1, rel=0.05), "no more even than chance, and no less"
    for quarter in range(4):
        part = drawn[quarter * 2000 : (quarter + 1) * 2000]
        assert sum(arrival.function == 0 for arrival in part) / 2000 == pytest.approx(0.75, abs=0.03)


def test_a_rate_stretches_the_trace_and_nothing_else(trace: ArrivalTrace) -> None:
    own, scaled = draw(trace), draw(trace, rate_per_s=trace.rate_per_s / 4)
    assert [arrival.ms for arrival in scaled] == pytest.approx([4 * arrival.ms for arrival in own])
    assert [arrival.function for arrival in scaled] == [arrival.function for arrival in own]
    fast = draw(trace, rounds=100, rate_per_s=9.0)
    assert len(fast) / fast[-1].ms * 1000 == pytest.approx(9.0, rel=0.01)


def test_another_seed_draws_other_times(trace: ArrivalTrace) -> None:
    assert draw(trace) == draw(trace)
    assert draw(trace)[0].ms != draw(trace, seed="t")[0].ms


def test_the_draws_of_a_seed_stay(trace: ArrivalTrace) -> None:
    """A run that an earlier version began goes on at the same times, and recorded benchmarks name theirs."""
    seed = "arrivals 0"
    poisson, gamma = poisson_ms(random.Random(seed), 9.0), gamma_ms(random.Random(seed), 9.0, 2.0)
    assert list(islice(poisson, 3)) == pytest.approx([221.075092, 291.796443, 572.785466])
    assert list(islice(gamma, 3)) == pytest.approx([468.721586, 470.188068, 470.773263])
    times_ms, functions = zip(*draw(trace, seed=seed)[:3], strict=True)
    assert times_ms == pytest.approx([15.061191, 68.413207, 649.446995])
    assert functions == (2, 2, 0)
