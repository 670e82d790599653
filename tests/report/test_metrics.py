"""The formulas, on cases computed by hand."""

from __future__ import annotations

import pytest

from caraserve_cli.core import Bounds, ColdStart, Completion, FinishReason, LoadTime, Request, Timings
from caraserve_cli.report.metrics import is_exact_match, measure, per_second, share

NO_BOUNDS = Bounds()


def completion(timings: Timings, num_tokens: int = 5, bounds: Bounds = NO_BOUNDS) -> Completion:
    return Completion(
        request=Request(id="r1", line=1, prompt_token_ids=(1, 2), bounds=bounds),
        text="",
        token_ids=list(range(num_tokens)),
        finish_reason=FinishReason.STOP,
        cold_start=ColdStart.NONE,
        timings=timings,
    )


def finished(arrival_ms: float = 100.0) -> Timings:
    return Timings(arrival_ms, first_scheduled_ms=130.0, first_token_ms=180.0, last_token_ms=300.0)


def test_times_count_from_arrival() -> None:
    metrics = measure(completion(finished()))
    assert metrics.queue_ms == 30.0
    assert metrics.ttft_ms == 80.0
    assert metrics.latency_ms == 200.0
    assert metrics.tpot_ms == (300.0 - 180.0) / 4
    assert metrics.slo_attained is None


def test_one_token_has_no_tpot() -> None:
    timings = Timings(0.0, first_scheduled_ms=0.0, first_token_ms=7.0, last_token_ms=7.0)
    metrics = measure(completion(timings, num_tokens=1))
    assert metrics.tpot_ms is None
    assert metrics.latency_ms == metrics.ttft_ms == 7.0


@pytest.mark.parametrize(
    ("bounds", "attained"),
    [
        (Bounds(), None),
        (Bounds(deadline_ms=200.0), True),
        (Bounds(deadline_ms=199.9), False),
        (Bounds(ttft_slo_ms=80.0), True),
        (Bounds(ttft_slo_ms=79.0), False),
        (Bounds(tpot_slo_ms=30.0), True),
        (Bounds(tpot_slo_ms=29.0), False),
        (Bounds(deadline_ms=1000.0, ttft_slo_ms=1000.0, tpot_slo_ms=1000.0), True),
        (Bounds(deadline_ms=1000.0, ttft_slo_ms=1000.0, tpot_slo_ms=1.0), False),
        (Bounds(deadline_ms=0.0), False),
    ],
)
def test_slo_is_every_bound_that_is_carried(bounds: Bounds, attained: bool | None) -> None:
    assert measure(completion(finished(), bounds=bounds)).slo_attained is attained


def test_undefined_tpot_meets_its_bound_but_not_the_others() -> None:
    timings = Timings(0.0, first_scheduled_ms=0.0, first_token_ms=7.0, last_token_ms=7.0)
    assert measure(completion(timings, 1, Bounds(tpot_slo_ms=0.001))).slo_attained is True
    assert measure(completion(timings, 1, Bounds(tpot_slo_ms=0.001, ttft_slo_ms=5.0))).slo_attained is False


def test_an_unfinished_answer_has_no_metrics() -> None:
    with pytest.raises(ValueError, match="'r1' is not finished"):
        measure(completion(Timings(0.0, first_scheduled_ms=1.0, first_token_ms=2.0)))


@pytest.mark.parametrize(
    ("load", "waited_ms", "hidden_ms"),
    [(None, 3.0, None), (LoadTime(), 3.0, None), (LoadTime(10.0), 3.0, 7.0), (LoadTime(10.0), 12.0, 0.0)],
    ids=["none", "not known", "in part", "nothing"],
)
def test_hidden_is_what_was_not_waited_for(
    load: LoadTime | None, waited_ms: float, hidden_ms: float | None
) -> None:
    timings = finished()
    timings.load, timings.load_wait_ms = load, waited_ms
    metrics = measure(completion(timings))
    assert metrics.load_ms == (None if load is None else load.ms)
    assert metrics.load_hidden_ms == hidden_ms


def test_undefined_is_none_never_zero() -> None:
    assert share(0, 0) is None
    assert share(0, 4) == 0.0
    assert share(3, 4) == 0.75
    assert per_second(10, 0.0) is None
    assert per_second(10, 4.0) == 2.5


def test_exact_match_ignores_white_space_around_only() -> None:
    assert is_exact_match(" a b\n", "a b")
    assert not is_exact_match("a  b", "a b")
    assert not is_exact_match("A b", "a b")
