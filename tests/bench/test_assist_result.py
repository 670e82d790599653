"""What a benchmark of CPU workers says of its times and of its trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from caraserve_cli.bench.assist_recipe import AssistCase, AssistLimits
from caraserve_cli.bench.assist_result import (
    AssistCaseResult,
    AssistFacts,
    AssistResult,
    AssistTimes,
    OpSpans,
    Overlap,
)
from caraserve_cli.bench.assist_terminal import render_assist
from caraserve_cli.bench.comparison import Spread, Verdict
from caraserve_cli.bench.kernel_result import verdict_on

# The product runs from 20 to 80 us, the workers from 30 to 60 and 100.
OP = OpSpans(
    name="layer 0, o_proj",
    sending_ns=10_000,
    sent_ns=30_000,
    product_begin_ns=20_000,
    product_end_ns=80_000,
    added_ns=120_000,
    worker_end_ns={0: 60_000, 2: 100_000},
)
TIMES = AssistTimes(
    sync_free_ms=Spread.of([3.0, 4.0, 5.0]),
    synchronised_ms=Spread.of([7.0, 6.0, 8.0]),
    saved_ms=Spread.of([4.0, 2.0, 3.0]),
    replayed_ms=Spread.of([2.0, 2.0, 2.0]),
    workers_us=Spread.of([10.0, 20.0, 30.0]),
    torch_us=Spread.of([15.0, 30.0, 45.0]),
    torch_alone_us=Spread.of([5.0, 8.0, 9.0]),
    speedup=Spread.of([1.5, 1.5, 1.5]),
)
CASE = AssistCaseResult(
    case=AssistCase(num_tokens=128, lora_rank=64, limits=AssistLimits()),
    num_ops=64,
    op_flops=2e8,
    peak_flops_per_s=4e13,
    times=TIMES,
    error=0.0,
    wrong=None,
    spans=(OP,),
)
FACTS = AssistFacts(
    recipe="mine",
    description="of nothing",
    caraserve_version="0",
    commit=None,
    versions={},
    device="none",
    cpu="none",
    num_cores=4,
    load_average=0.0,
    base="b",
    dtype="bfloat16",
    compute_dtype="bfloat16",
    modules=("o_proj",),
    warmups=0,
    repeats=3,
    num_workers=2,
    tokens_per_worker=16,
    num_adapters=1,
    peak_flops_per_s=4e13,
    seconds=1.0,
)


def with_limits(*limits: float | None) -> AssistCaseResult:
    """The case, and what is required of it."""
    return replace(CASE, case=replace(CASE.case, limits=AssistLimits(*limits)))


def test_the_share_of_the_peak() -> None:
    # 2e8 operations in 20 us are 1e13 a second.
    assert CASE.flops_per_s == pytest.approx(1e13)
    assert CASE.peak_share == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("changed", "overlap_us"),
    [
        ({}, 50),
        ({"worker_end_ns": {0: 60_000}}, 30),
        ({"worker_end_ns": {}}, 0),
        ({"sent_ns": 10_000}, 60),
        ({"sent_ns": 90_000}, 0),
    ],
)
def test_how_long_both_ran_at_once(changed: dict[str, object], overlap_us: float) -> None:
    assert replace(OP, **changed).overlap_ns == overlap_us * 1000  # type: ignore[arg-type]


def test_a_trace_in_numbers() -> None:
    late = replace(OP, sent_ns=90_000)
    assert Overlap.of([OP, late]) == Overlap(
        num_ops=2, num_overlapping=1, product_us=60.0, workers_us=40.0, overlap_us=25.0
    )


def test_a_trace_as_perfetto_reads_it() -> None:
    events = AssistResult(facts=FACTS, cases=(CASE,)).trace_json()["traceEvents"]
    assert isinstance(events, list)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = {names[e["tid"]]: (e["name"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"}
    assert spans == {
        "device: send rows": (OP.name, 0.0, 20.0),
        "device: base product": (OP.name, 10.0, 60.0),
        "device: wait for workers, add": (OP.name, 70.0, 40.0),
        "worker 0": (OP.name, 20.0, 30.0),
        "worker 2": (OP.name, 20.0, 70.0),
    }
    (process,) = [event for event in events if event["name"] == "process_name"]
    assert process["args"] == {"name": "128 tokens, rank 64"}


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        ((1.5, 0.25, 3.0), None),
        ((1.51, None, None), "workers are 1.50x as fast as torch; the recipe requires 1.51x"),
        (
            (None, 0.26, None),
            "workers reach 25.0% of a large product's rate; the recipe requires 26.0%",
        ),
        ((None, None, 3.5), "not synchronising saves 3.000 ms; the recipe requires 3.5 ms"),
    ],
)
def test_requirements(limits: tuple[float | None, ...], missed: str | None) -> None:
    case = with_limits(*limits)
    assert [limit.sentence for limit in case.limits() if not limit.is_met] == [missed] * bool(missed)
    assert verdict_on(case) is (Verdict.MISSED if missed else Verdict.MET)
    assert printed(case)[-1] == (
        f"Missed: '128 tokens, rank 64': {missed}."
        if missed
        else "All work was done and every requirement is met."
    )


def test_wrong_results_have_no_verdict() -> None:
    case = replace(with_limits(1.0), wrong="differs")
    assert AssistResult(facts=FACTS, cases=(CASE, case)).verdict is Verdict.CANNOT_TELL
    assert printed(case)[-1] == "Cannot tell: '128 tokens, rank 64' differs."


def test_tables_fit_a_terminal() -> None:
    lines = printed(with_limits(1.0))
    assert any(line.split()[4:] == ["4.00", "2.00", "7.00", "3.00", "2.00", "to", "4.00"] for line in lines)
    (row,) = (line for line in lines if "25.0%" in line)
    assert row.split()[4:] == ["20", "30", "8", "1.50x", "1.50", "to", "1.50", "25.0%", "met"]
    assert any("60.0" in line and "50.0" in line and "1/1" in line for line in lines)
    assert not any("…" in line for line in lines)


def printed(case: AssistCaseResult) -> list[str]:
    """What a terminal of 80 columns shows."""
    console = Console(width=80, soft_wrap=True)
    with console.capture() as capture:
        console.print(render_assist(AssistResult(facts=FACTS, cases=(case,))))
    return capture.get().splitlines()
