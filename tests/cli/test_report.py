"""`caraserve report` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.command import SAMPLE, assert_refused, write_rows
from tests.cli.conftest import Caraserve

SAMPLE_JOB = ("--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--dtype", "float32")


def test_a_run_is_rendered_again_and_compared(caraserve: Caraserve, tmp_path: Path) -> None:
    for name, most in (("a", "8"), ("b", "1")):
        differing = ("--max-running", most, "--deadline-ms", f"{most}0000")
        ended = caraserve("run", "--limit", "6", *differing, "--out", tmp_path / name)
        assert ended.returncode == 0, ended.stderr
    page = tmp_path / "a" / "report.html"
    written = page.read_text()
    page.unlink()
    ended = caraserve("report", tmp_path / "a")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "6 answered, 0 failed" in ended.stdout
    assert page.read_text() == written
    assert json.loads((tmp_path / "a" / "trace.json").read_bytes())["traceEvents"]
    ended = caraserve("report", tmp_path / "a", tmp_path / "b")
    assert (ended.returncode, ended.stderr) == (0, "")
    first = ended.stdout.splitlines()[0]
    assert first.startswith("Other work: --deadline-ms 80000.0, then 10000.0. "), first
    settings = ended.stdout.split("metric")[0]
    assert "--max-running" in settings
    assert "--deadline-ms" in settings
    assert "--default" not in settings
    assert "TTFT p99, ms" in ended.stdout


def test_a_run_that_was_resumed_is_not_judged_by_its_last_session(
    caraserve: Caraserve, tmp_path: Path
) -> None:
    """One row fails, is mended, and is all that the last session answers."""
    rows = [{"id": f"r{number}", "prompt": "hello", "max_tokens": 4} for number in range(3)]
    requests, out = tmp_path / "requests.jsonl", tmp_path / "resumed"
    for adapter, status, more in (("none", 3, ()), ("spell", 0, ("--resume", "--retry-errors"))):
        write_rows(requests, [*rows, {**rows[0], "id": "r3", "adapter": adapter}])
        ended = caraserve("run", requests, *SAMPLE_JOB, "--out", out, *more)
        assert ended.returncode == status, ended.stderr
    ended = caraserve("run", requests, *SAMPLE_JOB, "--out", tmp_path / "whole")
    assert ended.returncode == 0, ended.stderr
    ended = caraserve("report", out, tmp_path / "whole")
    assert (ended.returncode, ended.stderr) == (0, "")
    first, *others = ended.stdout.splitlines()
    assert first.startswith("One session: the first run was resumed, "), first
    assert "(1 of 4 answered)" in first
    rates = [line for line in others if line.startswith(("output tokens/s", "requests/s"))]
    assert [line.split()[-2:] for line in rates] == [["one", "session"]] * 2


def test_a_folder_without_a_report_is_refused(caraserve: Caraserve, tmp_path: Path) -> None:
    assert_refused(caraserve("report", tmp_path), 1, str(tmp_path), "report.json", "--resume")
    (tmp_path / "file").write_text("")
    for name, problem in (("file", "is a file"), ("none", "does not exist")):
        told = f"'{tmp_path / name}' {problem}; name the folder of a run"
        assert_refused(caraserve("report", tmp_path / name), 1, told)
