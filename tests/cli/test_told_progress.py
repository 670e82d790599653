"""What `caraserve run` tells of itself while it runs: counts that add up, whatever came before."""

from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.cli.progress import RunProgress
from caraserve_cli.report.progress_state import ProgressState
from tests.cli.command import SAMPLE, Row, read_rows, write_rows
from tests.cli.conftest import Caraserve

JOB = ("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--dtype", "float32")
ROW: Row = {"prompt": "Input: a\nOutput: ", "max_tokens": 8, "ignore_eos": True}
BAD_ROW: Row = {**ROW, "adapter": "nobody"}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[ProgressState]:
    """The states that a run tells, one after the other."""
    states: list[ProgressState] = []
    monkeypatch.setattr(RunProgress, "update", lambda _progress, state: states.append(state))
    return states


def test_tokens_count_as_they_are_generated(
    caraserve: Caraserve, told: list[ProgressState], tmp_path: Path
) -> None:
    """Also in a session whose first answers are far away; at the end they are those of its answers."""
    out = tmp_path / "out"
    requests = write_rows(tmp_path / "r.jsonl", [{**ROW, "id": f"r{number}"} for number in range(4)])
    job = (*JOB, "--out", out, requests)
    assert caraserve(*job, "--limit", "1").returncode == 0
    told.clear()
    assert caraserve(*job, "--resume").returncode == 0
    assert any(state.output_tokens > 0 and not state.num_answered for state in told)
    counts = [state.output_tokens for state in told]
    assert counts == sorted(counts)
    assert [row["completion_tokens"] for row in read_rows(out / "outputs.jsonl")] == [8] * 4
    assert counts[-1] == 3 * 8


def test_every_row_of_a_resumed_run_is_in_one_count(
    caraserve: Caraserve, told: list[ProgressState], tmp_path: Path
) -> None:
    rows = [*[ROW] * 3, *[BAD_ROW] * 4, *[ROW] * 5, BAD_ROW]
    rows = [{**row, "id": f"r{number}"} for number, row in enumerate(rows)]
    job = (*JOB, "--out", tmp_path / "out", write_rows(tmp_path / "r.jsonl", rows))
    assert caraserve(*job, "--limit", "7").returncode == 3
    last = told[-1]
    assert (last.num_answered, last.num_errors) == (3, 4)
    assert (last.num_answered_earlier, last.num_errors_earlier) == (0, 0)
    told.clear()
    ended = caraserve(*job, "--resume")
    assert ended.returncode == 3
    assert {(state.num_answered_earlier, state.num_errors_earlier) for state in told} == {(3, 4)}
    assert told[0].num_answered + told[0].num_errors <= 1, "none of those before"
    assert (told[-1].num_answered, told[-1].num_errors, told[-1].num_skipped) == (5, 1, 7)
    assert told[-1].fraction_done == 1.0
    assert ended.stdout.startswith(
        "8 answered, 5 failed (unknown_adapter: 5); 5 answered in this session, in "
    )


def test_with_retry_errors_what_is_tried_again_is_not_of_earlier_sessions(
    caraserve: Caraserve, told: list[ProgressState], tmp_path: Path
) -> None:
    rows = [{**row, "id": f"r{number}"} for number, row in enumerate([ROW, BAD_ROW, BAD_ROW])]
    job = (*JOB, "--out", tmp_path / "out", write_rows(tmp_path / "r.jsonl", rows))
    assert caraserve(*job).returncode == 3
    told.clear()
    assert caraserve(*job, "--resume", "--retry-errors").returncode == 3
    last = told[-1]
    assert (last.num_answered, last.num_errors) == (0, 2)
    assert (last.num_answered_earlier, last.num_errors_earlier, last.num_skipped) == (1, 0, 1)


def test_only_what_has_arrived_waits(caraserve: Caraserve, told: list[ProgressState], tmp_path: Path) -> None:
    """Nothing has for a second, so that it is told before, however busy the machine is."""
    arrivals_ms = [1000.0 + 50.0 * number for number in range(6)]
    rows = [{**ROW, "id": f"r{arrival_ms}", "arrival_ms": arrival_ms} for arrival_ms in arrivals_ms]
    requests = write_rows(tmp_path / "r.jsonl", rows)
    assert caraserve(*JOB, "--out", tmp_path / "out", requests).returncode == 0
    for state in told:
        num_submitted = state.num_answered + state.num_running + state.num_waiting
        assert num_submitted <= sum(ms <= state.elapsed_s * 1000.0 for ms in arrivals_ms)
        assert num_submitted + state.num_to_come <= len(rows)
    assert any(state.num_to_come and not state.num_running and not state.num_waiting for state in told)
    assert (told[-1].num_answered, told[-1].num_to_come) == (len(rows), 0)
