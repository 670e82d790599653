"""trace.json of a real run, and of what a run can make happen, against the rules of its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from caraserve_cli.report.run_trace import RunTrace
from tests.cli.command import SAMPLE
from tests.cli.forked import run_forked
from tests.report.test_run_trace import answer, step
from tests.report.trace_rules import broken_rules


def test_a_run_s_trace_keeps_them(tmp_path: Path) -> None:
    job = ("run", "-q", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--max-running", "4")
    ended = run_forked(*job, "--limit", "12", "--out", tmp_path / "out", SAMPLE / "requests.jsonl")
    assert ended.returncode == 0, ended.stderr
    trace = orjson.loads((tmp_path / "out" / "trace.json").read_bytes())
    assert set(trace) == {"displayTimeUnit", "otherData", "traceEvents"}
    assert broken_rules(trace["traceEvents"]) == []
    assert sum(event["ph"] == "b" and event["name"] == "queued" for event in trace["traceEvents"]) == 12


def test_loads_assists_gaps_and_replicas_keep_them() -> None:
    trace = RunTrace(kept_steps=3, kept_requests=2)
    for number in range(10):
        loads = {"num_adapter_loads": 1, "adapter_load_ms": 30.0, "adapter_pool_bytes": 9, "num_assists": 1}
        trace.on_step(step(number, replica=number % 2, **loads))
        trace.on_step(step(number, replica=number % 2, is_beside=True))
        trace.on_completion(answer(f"r{number}"))
    assert broken_rules(list(trace.events())) == []


EVENT = {"name": "n", "pid": 1, "tid": 1, "ts": 5.0, "args": {}}
NAMES = [
    {"ph": "M", "name": "process_name", "pid": 1, "tid": 0, "args": {"name": "p"}},
    {"ph": "M", "name": "thread_name", "pid": 1, "tid": 1, "args": {"name": "t"}},
]


@pytest.mark.parametrize(
    ("events", "told"),
    [
        ([{**EVENT, "ph": "Q"}], "unknown phase"),
        ([{**EVENT, "ph": "X", "dur": 2, "ts": -1.0}], "ts is no time"),
        ([{**EVENT, "ph": "X", "dur": 2, "pid": 7}], "its process has no name"),
        ([{**EVENT, "ph": "X", "dur": 2, "tid": 7}], "its row has no name"),
        ([{**EVENT, "ph": "X", "dur": 4}, {**EVENT, "ph": "X", "ts": 7.0, "dur": 4}], "across the end"),
        ([{**EVENT, "ph": "b", "id": 1, "cat": "c"}], "never ended"),
        ([{**EVENT, "ph": "e", "id": 1, "cat": "c"}], "not the innermost"),
        ([{**EVENT, "ph": "i", "s": "x"}], "no scope"),
        ([{**EVENT, "ph": "C", "args": {"a": "b"}}], "without numbers"),
    ],
)
def test_the_rules_can_fail(events: list[dict[str, Any]], told: str) -> None:
    broken = broken_rules([*NAMES, *events])
    assert broken
    assert told in broken[0]


def test_a_whole_that_ends_before_its_parts_is_found() -> None:
    common = {**EVENT, "id": 1, "cat": "c"}
    inner, outer = {**common, "name": "in"}, {**common, "name": "out"}
    begun = [{**outer, "ph": "b"}, {**inner, "ph": "b"}]
    assert broken_rules([*NAMES, *begun, {**inner, "ph": "e"}, {**outer, "ph": "e"}]) == []
    assert broken_rules([*NAMES, *begun, {**outer, "ph": "e"}, {**inner, "ph": "e"}])
