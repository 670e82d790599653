"""From completions and steps to measures, ratios, a verdict, and what is printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from io import StringIO

import pytest
from rich.console import Console

from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.confidence import Interval
from caraserve_cli.bench.serving_recipe import MEASURES, ServingCase, ServingRequirement
from caraserve_cli.bench.serving_result import CaseRuns, ServingCaseResult, ServingResult, judge_serving
from caraserve_cli.bench.serving_run import ServingRun, ratio_of
from caraserve_cli.bench.serving_terminal import render_serving
from caraserve_cli.core import (
    Bounds,
    ColdStart,
    Completion,
    FinishReason,
    Request,
    SamplingParams,
    Timings,
)
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.options import ReplicaOptions
from tests.bench.test_throughput_result import FACTS, step

AT_MOST = ServingRequirement(strategy="auto", measure="mean_ttft", over="cached", bound=1.03, is_at_most=True)
AT_MOST_MS = ServingRequirement(strategy="auto", measure="mean_ttft", over=None, bound=30.0, is_at_most=True)
CASE = ServingCase(
    name="9 a second",
    num_requests=2,
    num_adapters=2,
    lora_ranks=(64,),
    modules=("q_proj",),
    prompt_tokens=128,
    output_tokens=3,
    cold=True,
    peft=False,
    options=ReplicaOptions(base="any"),
    strategies=("cached", "auto"),
    rate_per_s=9.0,
    load=None,
    popularity=None,
    link_gbps=None,
    bounds=Bounds(ttft_slo_ms=25.0),
    requirements=(AT_MOST,),
)


def completion(
    arrival_ms: float, first_ms: float, last_ms: float, *, tokens: int = 3, slo_ms: float | None = 25.0
) -> Completion:
    request = Request(
        id="a",
        line=1,
        prompt_token_ids=(1,),
        sampling=SamplingParams(max_tokens=tokens),
        bounds=Bounds(ttft_slo_ms=slo_ms),
        arrival_ms=arrival_ms,
    )
    return Completion(
        request=request,
        text=None,
        token_ids=(5,) * tokens,
        finish_reason=FinishReason.LENGTH,
        cold_start=ColdStart.ON_DEMAND,
        timings=Timings(arrival_ms, arrival_ms, first_ms, last_ms),
    )


def run(ttft_ms: float = 20.0, *, undone: str | None = None, steps: Sequence[StepRecord] = ()) -> ServingRun:
    """Two requests that arrive 10 and 110 ms after the start; the second waits twice as long."""
    return ServingRun(
        started_ms=1000.0,
        completions=[
            completion(1010.0, 1010.0 + ttft_ms, 1050.0),
            completion(1110.0, 1110.0 + 2 * ttft_ms, 1200.0),
        ],
        steps=steps or [step(1000, 1004)],
        undone=undone,
    )


def judge(
    cached: Sequence[ServingRun],
    auto: Sequence[ServingRun],
    *required: ServingRequirement,
    saturation_per_s: float | None = 36.0,
) -> ServingCaseResult:
    case = dataclasses.replace(CASE, requirements=required or (AT_MOST,))
    runs = CaseRuns(rate_per_s=9.0, saturation_per_s=saturation_per_s, runs={"cached": cached, "auto": auto})
    return judge_serving(case, runs)


def test_what_a_run_measures() -> None:
    steps = [step(1000, 1050, prefill=7, decode=0), step(1050, 1054), step(1054, 1063, prefill=7)]
    assert run(steps=steps).measured_ms() == {
        "mean_ttft": 30.0,
        "p50_ttft": 20.0,
        "p99_ttft": 40.0,
        "mean_tpot": (10.0 + 25.0) / 2,
        "p99_tpot": 25.0,
        "mean_latency": (40.0 + 90.0) / 2,
        "p99_latency": 90.0,
        "longest_step": 9.0,
    }
    assert tuple(run().measured_ms()) == MEASURES
    assert run().output_tokens_per_s == pytest.approx(6 / 0.2)
    assert run().requests_per_s == pytest.approx(2 / 0.2)
    assert run().slo_attainment == 0.5
    assert run().cold_starts == {"on-demand": 2}


def test_what_is_not_defined_is_not_there() -> None:
    one_token = ServingRun(
        started_ms=0.0, completions=[completion(0, 5, 5, tokens=1, slo_ms=None)], steps=[], undone=None
    )
    assert "mean_tpot" not in one_token.measured_ms()
    assert "longest_step" not in one_token.measured_ms()
    assert one_token.slo_attainment is None
    assert ServingRun(started_ms=0.0, completions=[], steps=[], undone="x").measured_ms() == {}


def growing(latency_growth: float) -> ServingRun:
    """100 requests, one every 10 ms; request i takes 100 ms and `latency_growth` ms for each before it."""
    return ServingRun(
        started_ms=0.0,
        completions=[
            completion(10.0 * i, 10.0 * i + 1, 10.0 * i + 100 + latency_growth * i) for i in range(1, 101)
        ],
        steps=[],
        undone=None,
    )


def test_requests_that_pile_up_are_noticed() -> None:
    """Little: 100 requests a second times 0.1 s are 10 in the system."""
    steady = growing(0.0)
    assert steady.unanswered == (pytest.approx(10, abs=0.5), pytest.approx(10, abs=0.5))
    assert steady.kept_up
    assert not growing(20.0).kept_up


def with_load(*decode_ms: float, load_ms: float = 30.0) -> ServingRun:
    """A load from 100 ms after the start on, and decode steps: one before, those during, one after."""
    steps = [step(1000, 1050)]
    at_ms = 1100.0
    for index, each_ms in enumerate(decode_ms):
        loads = dataclasses.replace(
            step(at_ms, at_ms + each_ms, loads=int(not index)), adapter_load_ms=load_ms
        )
        steps.append(loads)
        at_ms += each_ms
    steps.append(step(1300, 1380))
    return run(steps=steps)


def test_steps_beside_a_load_are_held_against_those_at_the_same_moments() -> None:
    ours, same = with_load(8, 8, 12), run(steps=[step(1000, 1050), step(1098, 1104), step(1120, 1130)])
    assert ratio_of(ours, same, "p95_step_beside_load") == pytest.approx(12 / 10)


def test_without_a_load_there_is_no_step_beside_it() -> None:
    assert ratio_of(run(), run(), "p95_step_beside_load") is None
    required = dataclasses.replace(AT_MOST, measure="p95_step_beside_load")
    assert judge([run()], [run()], required).verdict is Verdict.CANNOT_TELL


def test_ratios_are_of_the_same_repeat() -> None:
    result = judge([run(10), run(20), run(40)], [run(11), run(20), run(36)])
    measured = result.judged[0].measured
    assert measured is not None
    assert measured.values == pytest.approx((1.1, 1.0, 0.9))
    assert measured.median == pytest.approx(1.0)
    assert result.judged[0].interval is None, "of three repeats"
    assert result.verdict is Verdict.MET


def test_five_repeats_have_an_interval() -> None:
    result = judge([run(10)] * 5, [run(ttft) for ttft in (10.0, 10.0, 11.0, 10.0, 10.0)])
    interval = result.judged[0].interval
    assert interval is not None
    assert interval.low < 1.0 < 1.02 < interval.high
    assert judge([run(10)] * 5, [run(10)] * 5).judged[0].interval == Interval(1.0, 1.0)


@pytest.mark.parametrize(
    ("bound", "is_at_most", "verdict"),
    [
        (1.5, True, Verdict.MET),
        (1.4, True, Verdict.MISSED),
        (1.5, False, Verdict.MET),
        (1.6, False, Verdict.MISSED),
    ],
)
def test_a_ratio_decides_on_either_side(bound: float, is_at_most: bool, verdict: Verdict) -> None:
    required = dataclasses.replace(AT_MOST, bound=bound, is_at_most=is_at_most)
    assert judge([run(20)], [run(30)], required).verdict is verdict


def test_milliseconds_decide_too() -> None:
    assert judge([run()], [run(20)], AT_MOST_MS).verdict is Verdict.MET
    assert judge([run()], [run(21)], AT_MOST_MS).verdict is Verdict.MISSED


def test_fast_work_that_was_not_done_means_nothing() -> None:
    result = judge([run()], [run(1, undone="1 of 2 requests failed"), run(1)][:1])
    assert result.undone == ("with auto 1 of 2 requests failed",)
    assert result.verdict is Verdict.CANNOT_TELL


def test_json_says_what_is_emulated_and_what_was_required() -> None:
    values = judge([run()], [run()]).as_json()
    assert (values["rate_per_s"], values["load"], values["is_link_emulated"]) == (9.0, 0.25, False)
    (required,) = values["requirements"]  # type: ignore[misc]
    assert (required["strategy"], required["over"], required["verdict"]) == ("auto", "cached", "met")


def test_as_printed() -> None:
    results = (
        judge([run()] * 5, [run(21)] * 5, AT_MOST, AT_MOST_MS),
        judge([run()], [run()], saturation_per_s=None),
    )
    emulated = dataclasses.replace(results[1], case=dataclasses.replace(CASE, name="slow", link_gbps=3.0))
    console = Console(file=StringIO(), width=200)
    console.print(render_serving(ServingResult(facts=FACTS, cases=(results[0], emulated))), soft_wrap=True)
    assert isinstance(console.file, StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert lines[8:] == [
        "9 a second: 9 requests/s, 25% of saturation, 2 requests, 2 adapters, 128 in and 3 out, native "
        "link; ms, medians of the repeats",
        "TTFT p50 p99 TPOT p99 latency p99 step p95 beside load SLO tokens/s cold starts",
        "cached 30.0 20.0 40.0 17.50 25.00 65 90 4.0 - 50% 30 2 on-demand",
        "auto 31.5 21.0 42.0 16.75 24.00 65 90 4.0 - 50% 30 2 on-demand",
        "",
        "slow: 9 requests/s, 2 requests, 2 adapters, 128 in and 3 out, 3 GB/s emulated; ms, medians of the "
        "repeats",
        "TTFT p50 p99 TPOT p99 latency p99 step p95 beside load SLO tokens/s cold starts",
        "cached 30.0 20.0 40.0 17.50 25.00 65 90 4.0 - 50% 30 2 on-demand",
        "auto 30.0 20.0 40.0 17.50 25.00 65 90 4.0 - 50% 30 2 on-demand",
        "",
        "required median lowest to highest 95% interval bound",
        "9 a second auto / cached, mean TTFT 1.050x 1.050x to 1.050x 1.050x to 1.050x at most 1.03x missed",
        "9 a second auto, mean TTFT 31.5 ms 31.5 ms to 31.5 ms 31.5 ms to 31.5 ms at most 30 ms missed",
        "slow auto / cached, mean TTFT 1.000x 1.000x to 1.000x - at most 1.03x met",
        "",
        "Missed: in '9 a second' auto / cached, mean TTFT is 1.050x; the recipe requires at most 1.03x.",
        "Missed: in '9 a second' auto, mean TTFT is 31.5 ms; the recipe requires at most 30 ms.",
    ]
