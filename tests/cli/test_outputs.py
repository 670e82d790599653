"""Outputs in the input's order, in another format, from several files."""

from __future__ import annotations

from pathlib import Path

import datasets
from pyarrow import parquet

from tests.cli.command import SAMPLE, Row, assert_refused, read_rows, write_rows
from tests.cli.conftest import Caraserve

JOB = ("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters")


def rows(numbers: range) -> list[Row]:
    """The longest answers first, so that they are finished last; one is refused."""
    made: list[Row] = [
        {"id": f"r{n}", "prompt": "Input: abc\nOutput: ", "max_tokens": 40 - n, "ignore_eos": True}
        for n in numbers
    ]
    made[1]["adapter"] = "nobody"
    return made


def test_answers_in_the_order_of_the_input(caraserve: Caraserve, tmp_path: Path) -> None:
    requests, out = write_rows(tmp_path / "r.jsonl", rows(range(20))), tmp_path / "out"
    ended = caraserve(*JOB, "--ordered", "--limit", "10", "--out", out, requests)
    assert ended.returncode == 3, ended.stderr
    ended = caraserve(*JOB, "--ordered", "--resume", "--out", out, requests)
    assert ended.returncode == 3, ended.stderr
    assert [row["id"] for row in read_rows(out / "outputs.jsonl")] == [f"r{n}" for n in range(20) if n != 1]
    assert [row["line"] for row in read_rows(out / "errors.jsonl")] == [2]


def test_several_files_and_a_table_of_answers(caraserve: Caraserve, tmp_path: Path) -> None:
    write_rows(tmp_path / "day-1.jsonl", rows(range(3)))
    write_rows(tmp_path / "day-2.jsonl", rows(range(3, 6)))
    out = tmp_path / "out"
    ended = caraserve(*JOB, "--output-format", "parquet", "--out", out, tmp_path / "day-*.jsonl")
    assert ended.returncode == 3, ended.stderr
    assert str(out / "outputs.parquet") in ended.stdout.replace("\n", "")
    table = parquet.read_table(out / "outputs.parquet").to_pylist()
    assert {row["id"] for row in table} == {"r0", "r2", "r3", "r5"}
    assert [row["line"] for row in read_rows(out / "errors.jsonl")] == [2, 5]
    lines = {row["id"]: row for row in read_rows(out / "outputs.jsonl")}
    assert {row["id"]: row for row in table} == lines
    ended = caraserve(*JOB, "--output-format", "dataset", "--out", out, "--resume", tmp_path / "day-*.jsonl")
    assert ended.returncode == 3, ended.stderr
    assert len(datasets.load_from_disk(out / "outputs")) == 4


def test_patterns_that_match_nothing(caraserve: Caraserve, tmp_path: Path) -> None:
    ended = caraserve(*JOB, "--out", tmp_path / "out", tmp_path / "night-*.jsonl")
    assert_refused(ended, 1, "night-*.jsonl", "matches no file")
