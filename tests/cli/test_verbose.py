"""`-v`: each request in a line on stderr, and nothing else on stdout than without it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cli.command import SAMPLE, assert_refused, write_rows
from tests.cli.conftest import Caraserve

JOB = ("run", "--base", SAMPLE / "base", "--adapters", SAMPLE / "adapters", "--max-tokens", "2")


def test_each_request_is_told(caraserve: Caraserve, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "x", "adapter": "upper", "deadline_ms": 600_000},
        {"id": "b", "prompt": "y"},
        {"id": "c", "prompt": "z", "adapter": "uper"},
    ]
    requests = write_rows(tmp_path / "r.jsonl", rows)
    told = caraserve(*JOB, "-v", "--out", tmp_path / "out", requests)
    assert told.returncode == 3
    assert re.search(
        r"^id a: upper \(\S+\), \d+ \+ \d tokens, \w+, queued .*TTFT .* ms, SLO met$", told.stderr, re.M
    )
    assert re.search(r"^id b: the base, \d+ \+ \d tokens, .*latency .* ms$", told.stderr, re.M)
    assert re.search(
        r"^line 3, id c: unknown_adapter: adapter 'uper' .*did you mean 'upper'\?$", told.stderr, re.M
    )
    plain = caraserve(*JOB, "--out", tmp_path / "plain", requests)
    assert "id a:" not in plain.stderr
    assert "id a:" not in told.stdout
    assert len(told.stdout.splitlines()) == len(plain.stdout.splitlines())


def test_a_row_without_an_id_is_told_by_its_place(caraserve: Caraserve, tmp_path: Path) -> None:
    """In the first file, behind an empty one, and where the numbers in errors.jsonl count through."""
    first, last = tmp_path / "1.jsonl", tmp_path / "3.jsonl"
    first.write_text('{"id": "a", "prompt": "x"}\nno JSON\n')
    (tmp_path / "2.jsonl").write_text("")
    last.write_text('no JSON\n{"id": "b", "prompt": "x"}\n\n[]\n')
    told = caraserve(*JOB, "-v", "--out", tmp_path / "out", tmp_path / "*.jsonl")
    assert told.returncode == 3
    rejected = [line for line in told.stderr.splitlines() if "invalid_request" in line or "JSON" in line]
    assert [line.partition(": ")[0] for line in rejected] == [
        f"line {number}, {place}" for number, place in ((2, f"{first}:2"), (3, f"{last}:1"), (6, f"{last}:4"))
    ]
    alone = caraserve(*JOB, "-v", "--out", tmp_path / "alone", first)
    assert f"line 2, {first}:2: " in alone.stderr
    assert "None" not in told.stderr + alone.stderr


def test_an_id_is_no_line_and_no_command_of_a_terminal(caraserve: Caraserve, tmp_path: Path) -> None:
    rows = [
        {"id": "a\nid forged: the base", "prompt": "x"},
        {"id": "b\x1b[2J", "prompt": "y", "adapter": "none of this name"},
    ]
    told = caraserve(*JOB, "-v", "--out", tmp_path / "out", write_rows(tmp_path / "r.jsonl", rows))
    assert told.returncode == 3
    assert re.search(r"^id a\\nid forged: the base: the base, ", told.stderr, re.M)
    assert r"line 2, id b\x1b[2J: unknown_adapter" in told.stderr
    assert "\x1b" not in told.stderr


def test_more_and_less_at_once_is_refused(caraserve: Caraserve) -> None:
    assert_refused(caraserve("run", "-v", "-q"), 2, "--verbose: it says more and --quiet less")


def test_several_sources_are_told_where_they_go(caraserve: Caraserve, tmp_path: Path) -> None:
    for day in (1, 2):
        write_rows(tmp_path / f"day-{day}.jsonl", [{"id": str(day), "prompt": "x"}])
    out = tmp_path / "out"
    told = caraserve(*JOB, "--out", out, tmp_path / "day-*.jsonl")
    assert f"2 sources, one after the other, into {out}" in told.stderr
    write_rows(tmp_path / "day-3.jsonl", [{"id": "3", "prompt": "x"}])
    again = caraserve(*JOB, "--out", out, "--resume", tmp_path / "day-*.jsonl")
    assert_refused(again, 1, f"requests: '{tmp_path / 'day-3.jsonl'}' is new", "resume with the same ones")
