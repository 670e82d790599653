"""--scheduling and --on-missed-deadline, whole runs of the sample's base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command import SAMPLE, assert_refused, read_rows, rows_by_id, write_rows
from tests.cli.conftest import Caraserve

JOB = (
    "run",
    "--base",
    SAMPLE / "base",
    "--adapters",
    SAMPLE / "adapters",
    "--dtype",
    "float32",
    "--device",
    "cpu",
)
ROWS = [
    {"id": "late", "prompt": "abc", "max_tokens": 60, "ignore_eos": True, "deadline_ms": 0.001},
    {"id": "in time", "prompt": "abc", "max_tokens": 6, "ignore_eos": True, "deadline_ms": 1e7},
    {"id": "unbounded", "prompt": "abc", "max_tokens": 6, "ignore_eos": True},
]


def test_what_is_past_its_deadline_is_dropped_and_counts_as_missed(
    caraserve: Caraserve, tmp_path: Path
) -> None:
    requests, out = write_rows(tmp_path / "r.jsonl", ROWS), tmp_path / "out"
    job = (*JOB, "--on-missed-deadline", "drop", "--out", out, requests)
    ended = caraserve(*job)
    assert ended.returncode == 3, ended.stderr
    answers = rows_by_id(out / "outputs.jsonl")
    assert {name: row["slo_attained"] for name, row in answers.items()} == {
        "in time": True,
        "unbounded": None,
    }
    assert all(row["completion_tokens"] == 6 for row in answers.values())
    (error,) = read_rows(out / "errors.jsonl")
    assert (error["line"], error["id"], error["code"]) == (1, "late", "deadline_exceeded")
    assert str(error["message"]).startswith("deadline_ms 0.001 was exceeded by ")
    report = json.loads((out / "report.json").read_text())
    assert report["slo"] == {"carried": 2, "attained": 1, "attainment": 0.5}
    assert report["requests"]["failed_by_code"] == {"deadline_exceeded": 1}
    (failure,) = report["failures"]
    assert (failure["id"], failure["message"]) == ("late", error["message"])
    assert "1 request was dropped" in (out / "report.html").read_text()
    trace = json.loads((out / "trace.json").read_text())
    assert trace["otherData"]["failed_requests_not_drawn"] == 1
    options = report["run"]["options"]
    assert (options["scheduling"], options["on_missed_deadline"]) == ("slack", "drop")

    assert caraserve(*job, "--resume").returncode == 3
    assert len(read_rows(out / "errors.jsonl")) == 1, "it is kept, not tried again"
    report = json.loads((out / "report.json").read_text())
    assert report["failures"] == [failure]
    assert json.loads((out / "trace.json").read_text()) == trace, "nothing was done that could replace it"
    assert report["slo"] == {"carried": 2, "attained": 1, "attainment": 0.5}

    # Tried again it is answered late.
    ended = caraserve(*JOB, "--out", out, "--resume", "--retry-errors", requests)
    assert ended.returncode == 0, ended.stderr
    assert rows_by_id(out / "outputs.jsonl")["late"]["slo_attained"] is False
    assert rows_by_id(out / "outputs.jsonl")["late"]["completion_tokens"] == 60


def test_by_default_it_is_answered_late(caraserve: Caraserve, tmp_path: Path) -> None:
    ended = caraserve(*JOB, "--out", tmp_path / "out", write_rows(tmp_path / "r.jsonl", ROWS))
    assert ended.returncode == 0, ended.stderr
    row = rows_by_id(tmp_path / "out" / "outputs.jsonl")["late"]
    assert (row["slo_attained"], row["completion_tokens"]) == (False, 60)


def test_answers_do_not_depend_on_the_policy(caraserve: Caraserve, tmp_path: Path) -> None:
    rows = [
        {**row, "id": f"{i} {row['id']}", "adapter": adapter, "ttft_slo_ms": 1 + 50 * i}
        for i, adapter in enumerate(["upper", None])
        for row in ROWS
    ]
    requests = write_rows(tmp_path / "r.jsonl", rows)
    texts = []
    for policy in ("slack", "fcfs"):
        out = tmp_path / policy
        ended = caraserve(*JOB, "--scheduling", policy, "--max-running", "2", "--out", out, requests)
        assert ended.returncode == 0, ended.stderr
        texts.append({name: row["text"] for name, row in rows_by_id(out / "outputs.jsonl").items()})
    assert texts[0] == texts[1]


@pytest.mark.parametrize("option", ["--scheduling", "--on-missed-deadline"])
def test_other_words_are_refused(caraserve: Caraserve, tmp_path: Path, option: str) -> None:
    requests = write_rows(tmp_path / "r.jsonl", ROWS)
    ended = caraserve(*JOB, option, "soonest", "--out", tmp_path / "out", requests)
    assert_refused(ended, 2, option, "soonest")
