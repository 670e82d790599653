"""From hand-made records of steps to times, ratios, a verdict, and what is printed."""

from __future__ import annotations

import dataclasses
from io import StringIO

import pytest
from rich.console import Console

from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.engine_result import CaseRun, Peer, Peers
from caraserve_cli.bench.peft_peer import PeftRun
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.bench.step_recipe import Measure, StepCase, StepRecipe
from caraserve_cli.bench.step_result import LoraPart, StepCaseResult, StepResult, StepTimes
from caraserve_cli.bench.step_terminal import render_steps
from caraserve_cli.bench.step_times import StepFloors, find_steps, judge_steps
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.options import ReplicaOptions
from tests.bench.test_throughput_result import FACTS

BASE = StepCase(
    name="base",
    num_requests=2,
    num_adapters=0,
    lora_ranks=(),
    modules=(),
    prompt_tokens=4,
    output_tokens=4,
    cold=False,
    peft=False,
    options=ReplicaOptions(base="any", max_batch_tokens=6),
    measure=Measure.DECODE,
    at_most=1.5,
    without=None,
    lora_at_most=None,
    lora_share_at_most=None,
    rate_at_least=None,
)
ADAPTERS = dataclasses.replace(
    BASE,
    name="adapters",
    num_adapters=2,
    at_most=None,
    without="base",
    lora_at_most=2.0,
    lora_share_at_most=0.2,
)
PREFILL = dataclasses.replace(BASE, name="prefill", measure=Measure.PREFILL, at_most=None, rate_at_least=0.62)


def records(*steps: tuple[float, int, int]) -> tuple[StepRecord, ...]:
    """Steps one after the other: (milliseconds, tokens of prompts, tokens of decoding)."""
    made: list[StepRecord] = []
    for step_ms, num_prefill_tokens, num_decode_tokens in steps:
        start_ms = made[-1].end_ms if made else 100.0
        made.append(
            StepRecord(
                start_ms=start_ms,
                end_ms=start_ms + step_ms,
                num_prefill_tokens=num_prefill_tokens,
                num_decode_tokens=num_decode_tokens,
                num_running=2,
                num_waiting=0,
                num_preempted=0,
                num_cached_tokens=0,
                num_adapter_loads=0,
                adapter_load_ms=0.0,
                num_kv_blocks_used=1,
                num_kv_blocks=2,
            )
        )
    return tuple(made)


def run(decode_ms: float, undone: str | None = None, prefill_ms: float = 50.0) -> CaseRun:
    """Six prompt tokens, then one of the first request beside the last two of the second; then both decode
    in two steps whose median is `decode_ms`, and the second in one more."""
    steps = records(
        (prefill_ms, 6, 0), (30.0, 2, 1), (decode_ms - 0.5, 0, 2), (decode_ms + 0.5, 0, 2), (1.0, 0, 1)
    )
    return CaseRun(seconds=1.0, num_output_tokens=8, steps=steps, undone=undone)


def judge(
    case: StepCase, runs: list[CaseRun], without: list[CaseRun] | None = None, peer: Peer | None = None
) -> StepCaseResult:
    return judge_steps(
        case,
        runs,
        without,
        lambda context_tokens: StepFloors(step_ms=2 * context_tokens or 25.0, lora_ms=0.5, flops=10**9),
        peer,
    )


def test_decoding_steps_are_those_of_all_requests_and_nothing_else() -> None:
    steps = find_steps(BASE, run(9.0))
    assert steps is not None
    assert (steps.num_steps, steps.step_ms) == (2, 9.0)
    # Eleven tokens, then thirteen, in two requests.
    assert steps.context_tokens == (11 / 2 + 13 / 2) / 2


def test_prefill_steps_are_full_ones() -> None:
    steps = find_steps(PREFILL, run(9.0))
    assert steps is not None
    assert (steps.num_steps, steps.step_ms, steps.context_tokens) == (1, 50.0, 0.0)


@pytest.mark.parametrize(
    ("at_most", "verdict"), [(1.5, Verdict.MET), (1.49, Verdict.MISSED), (None, Verdict.MET)]
)
def test_a_step_as_a_multiple_of_its_floor(at_most: float | None, verdict: Verdict) -> None:
    result = judge(dataclasses.replace(BASE, at_most=at_most), [run(17.0), run(18.0), run(30.0)])
    assert result.times is not None
    assert (result.times.step_ms.values, result.times.floor_ms) == ((17.0, 18.0, 30.0), 12.0)
    assert (result.times.times_floor, result.times.context_tokens) == (1.5, 6.0)
    assert result.times.num_steps == (2, 2, 2)
    assert result.times.lora is None
    assert result.verdict is verdict


@pytest.mark.parametrize(
    ("lora_at_most", "lora_share_at_most", "verdict"),
    [
        (2.0, 0.1, Verdict.MET),
        (1.9, 0.1, Verdict.MISSED),
        (2.0, 0.09, Verdict.MISSED),
        (None, 0.09, Verdict.MISSED),
        (None, None, Verdict.MET),
    ],
)
def test_the_lora_part_is_a_difference_within_a_repeat(
    lora_at_most: float | None, lora_share_at_most: float | None, verdict: Verdict
) -> None:
    """The machine slows down from repeat to repeat, which no difference of two medians would survive."""
    case = dataclasses.replace(ADAPTERS, lora_at_most=lora_at_most, lora_share_at_most=lora_share_at_most)
    result = judge(case, [run(10.0), run(20.0), run(40.0)], [run(9.0), run(19.5), run(32.0)])
    assert result.times is not None
    assert result.times.lora is not None
    assert result.times.lora.part_ms.values == (1.0, 0.5, 8.0)
    assert (result.times.lora.part_ms.median, result.times.lora.times_floor) == (1.0, 2.0)
    assert result.times.lora.share.values == pytest.approx((0.1, 0.025, 0.2))
    assert result.verdict is verdict


@pytest.mark.parametrize(
    ("with_ms", "without_ms", "verdict"),
    [
        ((12.0, 13.0, 14.0), (12.0, 13.1, 14.1), Verdict.CANNOT_TELL),
        ((12.0, 13.0, 14.0), (12.0, 13.0, 14.0), Verdict.CANNOT_TELL),
        ((12.0, 13.0, 14.0), (11.9, 12.9, 14.1), Verdict.MET),
    ],
    ids=["less than nothing", "nothing", "a fifth of the floor"],
)
def test_adapters_that_add_no_time(
    with_ms: tuple[float, ...], without_ms: tuple[float, ...], verdict: Verdict
) -> None:
    """It is noise that says so; less than the floor of their bytes can be real."""
    result = judge(ADAPTERS, [run(ms) for ms in with_ms], [run(ms) for ms in without_ms])
    assert result.step_verdict is Verdict.MET
    assert (result.lora_verdict, result.verdict) == (verdict, verdict)
    assert bool(list(result.lora_doubts())) is (verdict is Verdict.CANNOT_TELL)


@pytest.mark.parametrize(
    ("step_ms", "verdict"), [(11.3, Verdict.CANNOT_TELL), (11.5, Verdict.MET), (19.0, Verdict.MISSED)]
)
def test_a_step_faster_than_the_device(step_ms: float, verdict: Verdict) -> None:
    """A little less than the floor of 12 ms is the copy's fault, by which the bandwidth is known."""
    result = judge(BASE, [run(step_ms)])
    assert result.verdict is verdict
    lines = printed(result)
    doubt = "Cannot tell: in 'base' the step takes 0.942x its floor, less than the device can."
    assert (doubt in lines) is (verdict is Verdict.CANNOT_TELL)
    doubts = result.as_json()["doubts"]
    assert doubts == ([doubt[len("Cannot tell: in 'base' ") : -1]] if doubt in lines else [])


@pytest.mark.parametrize(("step_ms", "verdict"), [(23.7, Verdict.CANNOT_TELL), (23.9, Verdict.MET)])
def test_a_prefill_beyond_the_product_rate(step_ms: float, verdict: Verdict) -> None:
    """The floor is 25 ms."""
    assert judge(PREFILL, [run(1.0, prefill_ms=step_ms)]).verdict is verdict


@pytest.mark.parametrize(("rate_at_least", "verdict"), [(0.75, Verdict.MET), (0.76, Verdict.MISSED)])
def test_a_prefill_step_as_a_fraction_of_the_product_rate(rate_at_least: float, verdict: Verdict) -> None:
    case = dataclasses.replace(PREFILL, rate_at_least=rate_at_least)
    floors = StepFloors(step_ms=37.5, lora_ms=0.0, flops=10**9)
    result = judge_steps(case, [run(1.0)], None, lambda _: floors, None)
    assert result.times is not None
    assert (result.times.of_product_rate, result.times.flops_per_s) == (0.75, 1e9 / 0.05)
    assert result.verdict is verdict


def test_work_that_was_not_done_means_nothing() -> None:
    result = judge(BASE, [run(1.0), run(1.0, "1 of 2 requests failed")])
    assert result.undone == ("1 of 2 requests failed",)
    assert result.verdict is Verdict.CANNOT_TELL


def test_without_a_step_to_measure_there_is_no_verdict() -> None:
    empty = CaseRun(seconds=1.0, num_output_tokens=8, steps=records((5.0, 5, 1)), undone=None)
    result = judge(BASE, [run(1.0), empty])
    assert (result.times, result.verdict) == (None, Verdict.CANNOT_TELL)
    assert result.undone == ("no step decodes for all 2 requests and prefills nothing",)
    assert "step_ms" not in result.as_json()
    assert judge(PREFILL, [empty]).undone == ("no step has 6 tokens of prompts, 'max_batch_tokens'",)


def test_nothing_is_known_of_lora_where_the_case_without_was_not_measured() -> None:
    result = judge(ADAPTERS, [run(1.0)], [run(0.9, "2 of 2 requests failed")])
    assert result.verdict is Verdict.CANNOT_TELL
    assert result.undone == ("the case without adapters is not measured: 2 of 2 requests failed",)


def test_as_json() -> None:
    values = judge(ADAPTERS, [run(12.5)], [run(11.5)]).as_json()
    assert (values["name"], values["measure"], values["without"]) == ("adapters", "decode", "base")
    assert (values["floor_ms"], values["times_floor"], values["verdict"]) == (12.0, 12.5 / 12, "met")
    lora = values["lora"]
    assert isinstance(lora, dict)
    assert (lora["part_ms"]["median"], lora["floor_ms"], lora["times_floor"]) == (1.0, 0.5, 2.0)
    prefill = judge(PREFILL, [run(10.0)]).as_json()
    assert prefill["flops_per_s"] == 1e9 / 0.05
    assert "context_tokens" not in prefill


def printed(*cases: StepCaseResult) -> list[str]:
    console = Console(file=StringIO(), width=80)
    console.print(render_steps(StepResult(FACTS, cases)), soft_wrap=True)
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_missed_requirements_as_printed() -> None:
    base = [run(18.6), run(18.6)]
    lines = printed(
        judge(BASE, base),
        judge(dataclasses.replace(ADAPTERS, lora_share_at_most=0.05), [run(20.0), run(19.8)], base),
        judge(PREFILL, [run(1.0)]),
    )
    assert (
        lines[1]
        == "llama2-7b with random weights, single steps, decoding with contexts of 6 to 6 tokens on average"
    )
    assert lines[7:] == [
        "",
        "decode step     ms     low to high  floor  ratio  at most",
        "base         18.60  18.60 to 18.60  12.00  1.55x     1.5x  missed",
        "adapters     19.90  19.80 to 20.00  12.00  1.66x        -",
        "",
        "added time     ms     low to high  floor  ratio  share  at most",
        "adapters    1.300  1.200 to 1.400  0.500  2.60x   6.5%    2x 5%  missed",
        "",
        "prefill step    ms   low to high  TFLOP/s  of rate  at least",
        "prefill       50.0  50.0 to 50.0     0.02    50.0%       62%  missed",
        "",
        "Missed: in 'base' the step takes 1.550x its floor; the recipe allows 1.5x.",
        "Missed: in 'adapters' the added time is 2.600x its floor; the recipe allows 2x.",
        "Missed: in 'adapters' the added time is 6.53% of the step; the recipe allows 5%.",
        "Missed: in 'prefill' prefill reaches 50.00% of the matrix product rate; the recipe requires 62%.",
    ]


def test_the_embedded_recipe_fits_a_narrow_terminal() -> None:
    recipe = load_any_recipe(find_recipe("decode"))
    assert isinstance(recipe, StepRecipe)
    results: list[StepCaseResult] = []
    for case in recipe.cases:
        values = (20.12, 20.45, 20.0) if case.measure is Measure.DECODE else (215.12, 216.23, 215.0)
        lora = LoraPart(part_ms=Spread.of([6.123]), share=Spread.of([0.201]), floor_ms=3.9)
        times = StepTimes(
            step_ms=Spread.of(values),
            num_steps=(64,),
            context_tokens=512.0,
            floor_ms=12.0,
            flops=10**14,
            lora=None if case.without is None else lora,
        )
        results.append(StepCaseResult(case=case, times=times, undone=(), peers=Peers()))
    lines = printed(*results)
    assert "\u2026" not in "".join(lines), "nothing is cut off"


def test_work_not_done_as_printed() -> None:
    empty = CaseRun(seconds=1.0, num_output_tokens=8, steps=(), undone="2 of 2 requests failed")
    lines = printed(judge(BASE, [empty]), judge(ADAPTERS, [empty], [empty]), judge(PREFILL, [empty]))
    assert lines[1] == "llama2-7b with random weights, single steps"
    assert lines[8:] == [
        "decode step  ms  low to high  floor  ratio  at most",
        "base          -            -      -      -     1.5x  cannot tell",
        "adapters      -            -      -      -        -  cannot tell",
        "",
        "added time  ms  low to high  floor  ratio  share  at most",
        "adapters     -            -      -      -      -   2x 20%  cannot tell",
        "",
        "prefill step  ms  low to high  TFLOP/s  of rate  at least",
        "prefill        -            -        -        -       62%  cannot tell",
        "",
        "Cannot tell: in 'base' 2 of 2 requests failed.",
        "Cannot tell: in 'adapters' 2 of 2 requests failed.",
        "Cannot tell: in 'adapters' the case without adapters is not measured: 2 of 2 requests failed.",
        "Cannot tell: in 'prefill' 2 of 2 requests failed.",
    ]


def test_peers_as_printed() -> None:
    peft = PeftRun(num_requests=2, output_tokens=4, prefill_ms=700.0, step_ms=1000.0, num_steps=3)
    lines = printed(
        judge(BASE, [run(12.5)], peer=Peer(run=peft, problem=None)),
        judge(ADAPTERS, [run(12.5)], [run(11.9)], peer=Peer(run=peft, problem=None)),
        judge(dataclasses.replace(BASE, name="large"), [run(12.5)], peer=Peer(run=None, problem="no room")),
        judge(
            dataclasses.replace(ADAPTERS, name="more"),
            [run(12.5)],
            [run(11.9)],
            peer=Peer(run=None, problem="no room"),
        ),
    )
    assert lines[-8:] == [
        "",
        "speed, ours / theirs          peer  ms a step   ratio",
        "base                  transformers    1,000.0  80.00x  from 3 measured steps",
        "adapters                      PEFT    1,000.0  80.00x  from 3 measured steps",
        "",
        "Not measured: transformers in 'large': no room.",
        "Not measured: transformers + PEFT in 'more': no room.",
        "All work was done and every requirement is met.",
    ]


def test_peers_as_json() -> None:
    peft = PeftRun(num_requests=2, output_tokens=4, prefill_ms=700.0, step_ms=100.0, num_steps=3)
    assert judge(BASE, [run(10.0)], peer=Peer(run=peft, problem=None)).as_json()["peers"] == {
        "peft": {
            "num_requests": 2,
            "output_tokens": 4,
            "prefill_ms": 700.0,
            "step_ms": 100.0,
            "num_steps": 3,
            "tokens_per_s": 8.0,
        },
        "vllm": None,
    }
    assert judge(BASE, [run(10.0)], peer=Peer(run=None, problem="no room")).as_json()["peers"] == {
        "peft": {"problem": "no room"},
        "vllm": None,
    }
    assert judge(BASE, [run(10.0)]).as_json()["peers"] == {"peft": None, "vllm": None}


def test_all_met_as_printed() -> None:
    lines = printed(judge(BASE, [run(12.0)]))
    assert not any(line.startswith(("added time", "prefill step")) for line in lines)
    assert lines[-1] == "All work was done and every requirement is met."
