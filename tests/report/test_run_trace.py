"""trace.json: what is drawn, and that a long run's is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from caraserve_cli.core import ColdStart, Completion, FinishReason, Request, Timings
from caraserve_cli.events import StepRecord
from caraserve_cli.report.run_trace import RunTrace
from caraserve_cli.report.trace_file import write_trace


def step(number: int, **changes: Any) -> StepRecord:
    fields: dict[str, Any] = {
        "start_ms": 10.0 * number,
        "end_ms": 10.0 * number + 8,
        "num_prefill_tokens": 0,
        "num_decode_tokens": 4,
        "num_running": 4,
        "num_waiting": 1,
        "num_preempted": 0,
        "num_cached_tokens": 0,
        "num_adapter_loads": 0,
        "adapter_load_ms": 0.0,
        "num_kv_blocks_used": 5,
        "num_kv_blocks": 10,
    }
    return StepRecord(**(fields | changes))


def answer(request_id: str) -> Completion:
    return Completion(
        request=Request(id=request_id, line=1, prompt_token_ids=(1,), adapter="spell"),
        text=None,
        token_ids=(1, 2),
        finish_reason=FinishReason.STOP,
        cold_start=ColdStart.STREAM,
        timings=Timings(arrival_ms=1.0, first_scheduled_ms=2.0, first_token_ms=4.0, last_token_ms=8.0),
    )


def events(trace: RunTrace, **wanted: object) -> list[dict[str, Any]]:
    return [event for event in trace.events() if wanted.items() <= event.items()]


def test_steps_copies_and_workers_have_rows() -> None:
    trace = RunTrace()
    trace.on_step(
        step(
            1,
            num_adapter_loads=1,
            adapter_load_ms=3.0,
            num_assists=2,
            num_failed_assists=1,
            num_spared_loads=1,
        )
    )
    decode, copy, assist = events(trace, ph="X")
    assert (decode["name"], decode["ts"], decode["dur"]) == ("decode", 10_000, 8_000)
    assert (copy["ts"], copy["dur"]) == (15_000, 3_000)
    assert assist["args"] == {"chunks": 2, "too_late": 1, "spared_loads": 1}
    assert len({event["tid"] for event in (decode, copy, assist)}) == 3
    assert len(events(trace, name="thread_name")) == 4


def test_a_request_s_life_is_nested() -> None:
    trace = RunTrace()
    trace.on_completion(answer("r1"))
    spans = [(e["name"], e["ts"]) for e in events(trace, ph="b")]
    assert spans == [("r1", 1000), ("queued", 1000), ("prefill", 2000), ("decode", 4000)]
    assert len({event["id"] for event in events(trace, cat="request")}) == 1


def test_both_ends_of_a_long_run_are_kept() -> None:
    trace = RunTrace(kept_steps=3, kept_requests=2)
    for number in range(100):
        trace.on_step(step(number))
        trace.on_completion(answer(f"r{number}"))
    assert [e["ts"] for e in events(trace, ph="X", name="decode")] == [
        0,
        10_000,
        20_000,
        970_000,
        980_000,
        990_000,
    ]
    whole: Any = trace.notes()
    assert (whole["steps_left_out"], whole["requests_left_out"]) == (94, 96)
    (gap,) = events(trace, name="94 steps left out")
    assert (gap["ts"], gap["dur"]) == (28_000, 942_000)


def test_replicas_have_rows_of_their_own() -> None:
    trace = RunTrace()
    trace.on_step(step(1))
    trace.on_step(step(1, replica=1))
    names = {e["pid"]: e["args"]["name"] for e in events(trace, name="process_name")}
    assert sorted(names.values()) == ["replica 0", "replica 1", "requests"]
    assert len({event["pid"] for event in events(trace, ph="X")}) == 2


def test_no_row_holds_two_slices_at_once() -> None:
    trace = RunTrace()
    trace.on_step(step(1, num_adapter_loads=1, adapter_load_ms=5.0))
    trace.on_step(step(2, num_adapter_loads=1, adapter_load_ms=15.0))
    trace.on_step(step(2, start_ms=12.0, is_beside=True))
    loads = events(trace, name="load")
    assert [(e["ts"], e["ts"] + e["dur"]) for e in loads] == [(13_000, 18_000), (18_000, 28_000)]
    assert loads[1]["args"]["copying_ms"] == 15.0
    assert len(events(trace, ph="X", name="decode")) == 2
    assert [e["ts"] for e in events(trace, cat="beside")] == [12_000, 28_000]


def test_what_failed_is_counted_and_an_empty_session_overwrites_nothing(tmp_path: Path) -> None:
    trace = RunTrace()
    trace.on_completion(answer("r1"))
    trace.on_failure()
    path = write_trace(trace, tmp_path)
    written = path.read_bytes()
    assert orjson.loads(written)["otherData"]["failed_requests_not_drawn"] == 1
    assert write_trace(RunTrace(), tmp_path).read_bytes() == written
    path.unlink()
    assert orjson.loads(write_trace(RunTrace(), tmp_path).read_bytes())["traceEvents"]
