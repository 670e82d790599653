"""A run that is stopped at any moment goes on, and ends as if it had never been stopped.

Every run is a process of its own (see `forked`), and every kill the kernel's.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.cli.command import SAMPLE, Row, read_rows, rows_by_id, write_rows
from tests.cli.forked import finish_caraserve, start_caraserve

NUM_REQUESTS = 320
NUM_KILLS = 10
# What an answer is; the other keys are times.
ANSWER_KEYS = ("adapter", "text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens")


def make_rows() -> list[Row]:
    """Greedy and drawn answers over several adapters, with a bad row and a row without id among them."""
    chance = random.Random(0)
    adapters = ["reverse", "sort", "double", "team/roman", "spell", None]
    rows: list[Row] = []
    for number in range(NUM_REQUESTS):
        word = "".join(chance.choices("abcdefghijklm", k=6))
        row: Row = {"id": f"r{number}", "prompt": f"Input: {word}\nOutput: ", "max_tokens": 24}
        row |= {"adapter": chance.choice(adapters), "ignore_eos": number % 2 == 0}
        if number % 3 == 0:
            row |= {"temperature": 1.2, "top_p": 0.95}
        rows.append(row)
    rows.insert(100, {"prompt": "Input: nameless\nOutput: ", "max_tokens": 5})
    rows.insert(50, {"id": "bad", "prompt": "a", "adapter": "nobody", "deadline_ms": 5})
    return rows


def arguments(requests: Path, out: Path) -> list[str | Path]:
    job = ("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--dtype", "float32")
    return [*job, "--max-running", "8", "--token-ids", "--out", out, requests]


def answers_in(out: Path) -> dict[str, Row]:
    by_id = rows_by_id(out / "outputs.jsonl")
    return {name: {key: row.get(key) for key in ANSWER_KEYS} for name, row in by_id.items()}


def stop_after(num_new_rows: int, number: signal.Signals, requests: Path, out: Path, *more: str) -> int:
    """Start a run, send it a signal once it has written so many rows more; its exit status."""
    outputs = out / "outputs.jsonl"
    wanted = num_new_rows + (outputs.read_bytes().count(b"\n") if outputs.exists() else 0)
    process = start_caraserve(*arguments(requests, out), *more, stderr=stderr_of(out))
    while process.exitcode is None:
        if outputs.exists() and outputs.read_bytes().count(b"\n") >= wanted:
            assert process.pid is not None
            os.kill(process.pid, number)
            break
        time.sleep(0.005)
    process.join(120)
    assert process.exitcode is not None, "it does not stop"
    return process.exitcode


def finish(requests: Path, out: Path, *more: str) -> int:
    """Run to the end; the exit status."""
    return finish_caraserve(*arguments(requests, out), *more, stderr=stderr_of(out))


def stderr_of(out: Path) -> Path:
    """What the last run into a folder said on stderr."""
    return out.with_name("stderr")


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("requests") / "r.jsonl", make_rows())


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, requests: Path) -> Path:
    """The folder of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert finish(requests, out) == 3, stderr_of(out).read_text()
    assert len(answers_in(out)) == NUM_REQUESTS + 1
    return out


def test_killed_ten_times_it_ends_as_if_unbroken(requests: Path, unbroken: Path, tmp_path: Path) -> None:
    out, chance = tmp_path / "out", random.Random(1)
    statuses = [
        stop_after(chance.randint(1, 28), signal.SIGKILL, requests, out, "--resume") for _ in range(NUM_KILLS)
    ]
    assert statuses == [-signal.SIGKILL] * NUM_KILLS, "every kill was meant to hit a run at work"
    assert 0 < len(read_rows_but_torn(out / "outputs.jsonl")) < NUM_REQUESTS
    assert finish(requests, out, "--resume") == 3, stderr_of(out).read_text()
    assert "nothing to resume" not in stderr_of(out).read_text()
    assert answers_in(out) == answers_in(unbroken)
    assert [row["id"] for row in read_rows(out / "errors.jsonl")] == ["bad"]


def test_nothing_to_resume_is_said_and_no_error(tmp_path: Path) -> None:
    requests = write_rows(tmp_path / "r.jsonl", [{"id": "a", "prompt": "a", "max_tokens": 1}])
    out = tmp_path / "none" / "out"
    out.parent.mkdir()
    assert finish(requests, out, "--resume") == 0, stderr_of(out).read_text()
    assert stderr_of(out).read_text().splitlines()[0] == f"nothing to resume in {out}: starting"
    assert finish(requests, out, "--resume") == 0
    assert "nothing to resume" not in stderr_of(out).read_text()


def read_rows_but_torn(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()[:-1]


def test_interrupted_it_says_how_to_go_on(requests: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert stop_after(10, signal.SIGINT, requests, out) == 130
    last_line = stderr_of(out).read_text().splitlines()[-1]
    command = "caraserve run --resume" + "".join(f" {part}" for part in arguments(requests, out)[1:])
    assert last_line == f"Stopped. To go on: {command}"
    partial = answers_in(out)
    assert 0 < len(partial) < NUM_REQUESTS
    assert (out / "report.json").is_file()
    assert finish(requests, out, "--resume") == 3, stderr_of(out).read_text()
    assert answers_in(out) == answers_in(unbroken)


def test_torn_lines_are_answered_again(requests: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    outputs = out / "outputs.jsonl"
    os.truncate(outputs, outputs.stat().st_size - 7)
    with (out / "errors.jsonl").open("ab") as file:
        file.write(b'{"line": 9')
    assert finish(requests, out, "--resume") == 3, stderr_of(out).read_text()
    assert answers_in(out) == answers_in(unbroken)
    assert len(read_rows(out / "errors.jsonl")) == 1


def test_nothing_left_is_no_error(requests: Path, unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(unbroken, out)
    before = (out / "outputs.jsonl").read_bytes()
    assert finish(requests, out, "--resume") == 3, "the bad row is still bad"
    assert (out / "outputs.jsonl").read_bytes() == before
    assert "Nothing to do" in stderr_of(out).read_text()


def test_errors_are_tried_again_when_asked(requests: Path, unbroken: Path, tmp_path: Path) -> None:
    out, mended = tmp_path / "out", tmp_path / "r.jsonl"
    shutil.copytree(unbroken, out)
    rows = [{**row, "adapter": "reverse"} if row.get("id") == "bad" else row for row in make_rows()]
    requests_text = requests.read_bytes()
    write_rows(mended, rows)
    try:
        shutil.copy(mended, requests)  # the same path, as a user mends a file
        assert finish(requests, out, "--resume") == 3, "without --retry-errors an error row is kept"
        retried = finish(requests, out, "--resume", "--retry-errors")
    finally:
        requests.write_bytes(requests_text)
    assert retried == 0, stderr_of(out).read_text()
    assert read_rows(out / "errors.jsonl") == []
    assert answers_in(out).keys() == answers_in(unbroken).keys() | {"bad"}
