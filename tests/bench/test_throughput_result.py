"""From runs to medians, a verdict, and what is printed."""

from __future__ import annotations

import dataclasses
from io import StringIO

import pytest
from rich.console import Console

from caraserve_cli.bench.case_runner import find_undone
from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.comparison import Verdict
from caraserve_cli.bench.engine_result import CaseRun, EngineFacts, Peer, Peers, VllmPeer
from caraserve_cli.bench.peft_peer import PeftRun
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.bench.throughput_recipe import ThroughputCase, ThroughputRecipe
from caraserve_cli.bench.throughput_result import (
    CaseResult,
    ThroughputResult,
    judge_case,
)
from caraserve_cli.bench.throughput_terminal import render_throughput
from caraserve_cli.bench.vllm_peer import VllmRun
from caraserve_cli.core import ColdStart, Completion, Failure, FinishReason, Request, SamplingParams, Timings
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.options import ReplicaOptions

CASE = ThroughputCase(
    name="32 requests, 2 adapters",
    num_requests=2,
    num_adapters=2,
    lora_ranks=(8,),
    modules=("q_proj",),
    prompt_tokens=128,
    output_tokens=64,
    cold=True,
    peft=False,
    vllm=False,
    at_least=5000.0,
    options=ReplicaOptions(base="any"),
)
FACTS = EngineFacts(
    recipe="tiny",
    description="one case",
    weights="random",
    caraserve_version="0.1.0",
    commit="abc123",
    versions={"torch": "2.11.0"},
    device="a GPU",
    num_threads=2,
    num_cores=2,
    load_average=0.25,
    base="llama2-7b",
    dtype="bfloat16",
    warmups=1,
    repeats=3,
    copy_bytes_per_s=4.3e12,
    product_flops_per_s=7.9e14,
    startup_s=12.34,
    num_adapters=2,
    adapters_s=0.5,
)


def step(
    start_ms: float, end_ms: float, *, prefill: int = 0, decode: int = 2, running: int = 2, loads: int = 0
) -> StepRecord:
    return StepRecord(
        start_ms=start_ms,
        end_ms=end_ms,
        num_prefill_tokens=prefill,
        num_decode_tokens=decode,
        num_running=running,
        num_waiting=0,
        num_preempted=0,
        num_cached_tokens=0,
        num_adapter_loads=loads,
        adapter_load_ms=0.0,
        num_kv_blocks_used=1,
        num_kv_blocks=2,
    )


STEPS = (step(0, 50, prefill=7, loads=2), step(50, 54), step(54, 56, loads=1), step(56, 60, running=0))


def run(seconds: float, undone: str | None = None, steps: tuple[StepRecord, ...] = STEPS) -> CaseRun:
    return CaseRun(seconds=seconds, num_output_tokens=8000, steps=steps, undone=undone)


def judge(
    runs: list[CaseRun], at_least: float | None = 5000.0, name: str = CASE.name, peers: Peers | None = None
) -> CaseResult:
    case = dataclasses.replace(CASE, at_least=at_least, name=name)
    return judge_case(
        case,
        runs,
        kv_tokens=512,
        adapter_pool_bytes=99,
        floor_tokens_per_s=10_000.0,
        peers=peers or Peers(),
    )


def result_of(cases: tuple[CaseResult, ...]) -> ThroughputResult:
    return ThroughputResult(facts=FACTS, prompt_tokens=128, output_tokens=64, cases=cases)


def test_medians_steps_and_the_floor() -> None:
    result = judge([run(1.0), run(2.0), run(4.0)])
    assert result.tokens_per_s.values == (8000.0, 4000.0, 2000.0)
    assert (result.tokens_per_s.median, result.of_floor) == (4000.0, 0.4)
    assert result.decode_step_ms is not None
    assert result.decode_step_ms.median == 4.0, "of the steps without prefill"
    assert result.num_adapter_loads == (3, 3, 3)
    assert result.peak_running == (2, 2, 2)


def test_a_step_of_dropped_tokens_alone_is_no_decode_step() -> None:
    steps = (step(0, 50, prefill=7), step(50, 54), step(54, 55, decode=0), step(55, 56, decode=0))
    result = judge([run(1.0, steps=steps)])
    assert result.decode_step_ms is not None
    assert result.decode_step_ms.median == 4.0


def test_a_case_of_prefill_alone_has_no_decode_steps() -> None:
    assert judge([run(1.0, steps=STEPS[:1])]).decode_step_ms is None


@pytest.mark.parametrize(
    ("at_least", "verdict"), [(4000.0, Verdict.MET), (4000.1, Verdict.MISSED), (None, Verdict.MET)]
)
def test_a_requirement_is_on_the_median(at_least: float | None, verdict: Verdict) -> None:
    assert judge([run(1.0), run(2.0), run(4.0)], at_least).verdict is verdict


def test_fast_work_that_was_not_done_means_nothing() -> None:
    result = judge([run(0.1), run(0.1, "1 of 2 requests failed"), run(0.1, "1 of 2 requests failed")])
    assert result.undone == ("1 of 2 requests failed",)
    assert result.verdict is Verdict.CANNOT_TELL


def test_the_worst_case_decides() -> None:
    met, missed, unknown = judge([run(1.0)]), judge([run(9.0)]), judge([run(1.0, "x")])
    assert result_of((met, met)).verdict is Verdict.MET
    assert result_of((met, missed)).verdict is Verdict.MISSED
    assert result_of((missed, unknown, met)).verdict is Verdict.CANNOT_TELL


def request(name: str) -> Request:
    sampling = SamplingParams(max_tokens=2)
    return Request(id=name, line=1, prompt_token_ids=(1,), sampling=sampling)


def completion(name: str, num_tokens: int = 2, *, cached: int = 0, preemptions: int = 0) -> Completion:
    return Completion(
        request=request(name),
        text=None,
        token_ids=(5,) * num_tokens,
        finish_reason=FinishReason.LENGTH,
        cold_start=ColdStart.NONE,
        timings=Timings(arrival_ms=0.0),
        num_cached_tokens=cached,
        num_preemptions=preemptions,
    )


@pytest.mark.parametrize(
    ("outcomes", "undone"),
    [
        ([completion("a"), completion("b")], None),
        ([completion("a"), completion("b", cached=16, preemptions=1)], None),
        ([completion("a")], "1 of 2 requests have no answer of full length"),
        ([completion("a"), completion("b", 1)], "1 of 2 requests have no answer of full length"),
        ([completion("a"), completion("b", 3)], "1 of 2 requests have no answer of full length"),
        (
            [completion("a"), completion("b"), completion("b")],
            "0 of 2 requests have no answer of full length",
        ),
        ([completion("a"), completion("b", cached=16)], "1 of 2 prompts were found in the prefix cache"),
        (
            [Failure(request("a"), "kv_capacity", "the cache is small"), completion("b")],
            "1 of 2 requests failed, the first because the cache is small",
        ),
    ],
)
def test_what_was_not_done_is_found(outcomes: list[Completion | Failure], undone: str | None) -> None:
    assert find_undone([request("a"), request("b")], outcomes) == undone


def printed(*cases: CaseResult) -> list[str]:
    console = Console(file=StringIO(), width=80)
    console.print(render_throughput(result_of(cases)), soft_wrap=True)
    assert isinstance(console.file, StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_a_missed_requirement_as_printed() -> None:
    assert printed(judge([run(1.0), run(2.0), run(4.0)]), judge([run(0.5)], None, "free")) == [
        "tiny: one case",
        "llama2-7b with random weights, 128 prompt and 64 output tokens a request",
        "3 interleaved repeats, warm-ups: 1",
        "a GPU, bfloat16, torch 2.11.0, commit abc123",
        "load average before: 0.2 on 2 cores",
        "copy 4,300 GB/s, matrix product 790 TFLOP/s",
        "first replica ready after 12.3 s, 2 adapters made in 0.5 s",
        "",
        "output tokens/s          median  lowest to highest  required",
        "32 requests, 2 adapters   4,000     2,000 to 8,000     5,000  missed",
        "free                     16,000   16,000 to 16,000         -",
        "",
        "                          floor  of floor  decode step  loads  running",
        "32 requests, 2 adapters  10,000       40%      4.00 ms      3        2",
        "free                     10,000      160%      4.00 ms      3        2",
        "",
        "Missed: '32 requests, 2 adapters' gives 4,000 output tokens a second; the recipe requires 5,000.",
    ]


PEFT = Peer(
    run=PeftRun(num_requests=2, output_tokens=64, prefill_ms=700.0, step_ms=100.0, num_steps=8), problem=None
)
VLLM = VllmPeer(
    run=VllmRun(version="0.14.1", max_loras=2, num_output_tokens=8000, seconds=(2.0, 1.6, 1.5)), problem=None
)


def test_peers_as_printed() -> None:
    lines = printed(
        judge([run(2.0)], None, peers=Peers(peft=PEFT, vllm=VLLM)),
        judge([run(2.0)], None, "free", peers=Peers(vllm=VLLM)),
        judge(
            [run(2.0)],
            None,
            "large",
            peers=Peers(
                peft=Peer(run=None, problem="it does not fit"),
                vllm=VllmPeer(run=None, problem="exit status 9, it said nothing"),
            ),
        ),
    )
    assert lines[-11:] == [
        "",
        "speed, ours / theirs     peer  tokens/s    ratio",
        "32 requests, 2 adapters  PEFT        18  218.75x  from 8 measured steps",
        "32 requests, 2 adapters  vLLM     5,000    0.80x  whole answers, vLLM 0.14.1,",
        "                                                  max_loras 2",
        "free                     vLLM     5,000    0.80x  whole answers, vLLM 0.14.1,",
        "                                                  max_loras 2",
        "",
        "Not measured: transformers + PEFT in 'large': it does not fit.",
        "Not measured: vLLM in 'large': exit status 9, it said nothing.",
        "All work was done and every requirement is met.",
    ]


def test_no_vllm_is_said_once() -> None:
    missing = Peers(vllm=VllmPeer.missing())
    lines = printed(
        judge([run(2.0)], None, peers=missing),
        judge([run(2.0)], None, "large", peers=missing),
        judge([run(1)]),
    )
    assert not any("Not measured" in line or "ours / theirs" in line for line in lines)
    assert lines[-3:] == [
        "",
        "vLLM is not installed, so that it was not measured.",
        "All work was done and every requirement is met.",
    ]


def test_peers_as_json() -> None:
    assert judge([run(2.0)], peers=Peers(peft=PEFT, vllm=VLLM)).as_json()["peers"] == {
        "peft": {
            "num_requests": 2,
            "output_tokens": 64,
            "prefill_ms": 700.0,
            "step_ms": 100.0,
            "num_steps": 8,
            "tokens_per_s": pytest.approx(128 / 7.0),
        },
        "vllm": {
            "version": "0.14.1",
            "max_loras": 2,
            "num_output_tokens": 8000,
            "seconds": (2.0, 1.6, 1.5),
            "tokens_per_s": 5000.0,
        },
    }
    missing = judge([run(2.0)], peers=Peers(vllm=VllmPeer.missing()))
    assert missing.as_json()["peers"] == {"peft": None, "vllm": {"problem": "vLLM is not installed"}}
    assert judge([run(2.0)]).as_json()["peers"] == {"peft": None, "vllm": None}


def test_the_embedded_recipe_fits_a_narrow_terminal() -> None:
    recipe = load_any_recipe(find_recipe("throughput"))
    assert isinstance(recipe, ThroughputRecipe)
    cases = [
        dataclasses.replace(judge([run(0.5)], peers=Peers(peft=PEFT, vllm=VLLM)), case=case)
        for case in recipe.cases
    ]
    assert "\u2026" not in "".join(printed(*cases)), "nothing is cut off"


def test_a_long_version_takes_no_room_of_the_numbers() -> None:
    run_of_nightly = VllmRun(
        version="0.14.1rc2.dev133+g1234567", max_loras=32, num_output_tokens=8000, seconds=(1.6,)
    )
    peers = Peers(vllm=VllmPeer(run=run_of_nightly, problem=None))
    lines = printed(judge([run(2.0)], None, "256, 256 adapters, 4.3 GB", peers=peers))
    assert lines[-5:-1] == [
        "256, 256 adapters, 4.3 GB  vLLM     5,000  0.80x  whole answers, vLLM",
        "                                                  0.14.1rc2.dev133+g1234567,",
        "                                                  max_loras 32",
        "",
    ]


def test_work_not_done_as_printed() -> None:
    lines = printed(judge([run(0.1, "2 of 2 requests failed", steps=())]))
    assert "32 requests, 2 adapters  80,000   80,000 to 80,000     5,000  cannot tell" in lines
    assert "32 requests, 2 adapters  10,000      800%            -      0        0" in lines
    assert lines[-1] == "Cannot tell: in '32 requests, 2 adapters' 2 of 2 requests failed."


def test_all_met_as_printed() -> None:
    assert printed(judge([run(1.0)]))[-1] == "All work was done and every requirement is met."
