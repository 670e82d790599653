from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from caraserve_cli.errors import OptionError
from caraserve_cli.job.arrival_options import ArrivalOptions
from caraserve_cli.job.arrival_plan import ArrivalPlan
from caraserve_cli.requests.stream import RowArrival
from tests.requests.traces import write_trace

NAMES = ("a", "b", "team/c")
POISSON = ArrivalOptions(rate_per_s=9.0)
GAMMA = ArrivalOptions(named="gamma", rate_per_s=9.0, burstiness=2.5)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Functions by popularity: x, y, z, w."""
    return write_trace(tmp_path / "t.csv", {"w": [1, 1], "x": [8, 8], "y": [4, 4], "z": [2, 2]})


def rows(plan: ArrivalPlan, number: int = 30) -> list[RowArrival]:
    arrivals = plan.row_arrivals()
    assert arrivals is not None
    return list(islice(arrivals, number))


def test_without_options_rows_say_when_they_arrive() -> None:
    plan = ArrivalPlan(ArrivalOptions(), 0, NAMES)
    assert plan.row_arrivals() is None
    assert not plan.is_by_process
    assert plan.process is None
    assert plan.definition == "arrival_ms of the request (default 0), counted from the start of the run"


@pytest.mark.parametrize("options", [POISSON, GAMMA], ids=["poisson", "gamma"])
def test_arrivals_follow_from_the_number_of_the_row_and_the_seed(options: ArrivalOptions) -> None:
    first = rows(ArrivalPlan(options, 5, NAMES))
    assert rows(ArrivalPlan(options, 5, ())) == first
    assert rows(ArrivalPlan(options, 5, NAMES), 7) == first[:7]
    assert rows(ArrivalPlan(options, 6, NAMES)) != first
    assert {arrival.adapter for arrival in first} == {None}


def test_a_plan_can_be_followed_again() -> None:
    plan = ArrivalPlan(POISSON, 5, NAMES)
    assert rows(plan) == rows(plan)


def test_a_gamma_process_without_burstiness_has_that_of_poisson() -> None:
    left_out, poisson = (
        ArrivalPlan(ArrivalOptions(named="gamma", rate_per_s=9.0, burstiness=each), 0, ())
        for each in (None, 1.0)
    )
    assert left_out.process == poisson.process == "gamma, 9 requests/s, burstiness 1"
    assert rows(left_out) == rows(poisson)


def test_functions_have_the_adapters_in_turn_by_popularity(trace: Path) -> None:
    """Of 30 invocations x has 16, y 8, z 4 and w 2, which comes round to the first adapter."""
    plan = ArrivalPlan(ArrivalOptions(named="trace", trace=trace, trace_adapters=True), 0, NAMES)
    drawn = [arrival.adapter for arrival in rows(plan)]
    assert [drawn.count(name) for name in NAMES] == [16 + 2, 8, 4]


def test_an_adapter_that_no_request_could_name_is_no_function_s(trace: Path) -> None:
    options = ArrivalOptions(named="trace", trace=trace, trace_adapters=True)
    plan, odd = ArrivalPlan(options, 0, NAMES), ArrivalPlan(options, 0, (*NAMES, "x\udcff"))
    assert (rows(odd), odd.process) == (rows(plan), plan.process)


def test_times_of_a_trace_do_not_depend_on_its_adapters(trace: Path) -> None:
    named, plain = (
        rows(ArrivalPlan(ArrivalOptions(named="trace", trace=trace, trace_adapters=is_named), 0, NAMES))
        for is_named in (True, False)
    )
    assert [arrival.ms for arrival in named] == [arrival.ms for arrival in plain]
    assert {arrival.adapter for arrival in plain} == {None}


def test_where_there_are_no_adapters_a_trace_cannot_name_them(trace: Path) -> None:
    with pytest.raises(OptionError, match=r"^--trace-adapters: no adapters were found; check --adapters$"):
        ArrivalPlan(ArrivalOptions(named="trace", trace=trace, trace_adapters=True), 0, ())


def test_a_plan_says_all_that_its_arrivals_follow_from(trace: Path) -> None:
    assert ArrivalPlan(POISSON, 4, NAMES).process == "poisson, 9 requests/s"
    plan = ArrivalPlan(GAMMA, 4, NAMES)
    assert plan.process == "gamma, 9 requests/s, burstiness 2.5"
    assert plan.definition == (
        "gamma, 9 requests/s, burstiness 2.5, seed 4; "
        "in the order of the file, counted from the start of the run"
    )
    options = ArrivalOptions(named="trace", trace=trace, rate_per_s=0.1, trace_adapters=True)
    told = ArrivalPlan(options, 0, NAMES).process
    assert told is not None
    assert told.startswith(f"trace, 0.1 requests/s, {trace} (")
    assert ", its functions on 3 adapters (" in told
    assert ArrivalPlan(options, 0, ("a", "b", "d")).process != told, "they would be others"
    trace.write_text(trace.read_text().replace("8", "9"))
    assert ArrivalPlan(options, 0, NAMES).process != told, "so would the times"
