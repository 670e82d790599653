"""RowStream: ids of its own making, duplicates, limits, rows that are rejected."""

import tracemalloc
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caraserve_cli.core import RequestRow
from caraserve_cli.errors import OptionError, RowErrorCode
from caraserve_cli.requests.row import RowDefaults
from caraserve_cli.requests.source import MAX_LINE_BYTES, LineSource, RawLine
from caraserve_cli.requests.stream import RejectedRow, RowArrival, RowStream


def rows_of(*lines: bytes | None, limit: int | None = None) -> list[RequestRow | RejectedRow]:
    numbered = [RawLine(number, line) for number, line in enumerate(lines, start=1)]
    return list(RowStream(numbered, RowDefaults(), limit))


def ids_of(*lines: bytes) -> list[str]:
    rows = rows_of(*lines)
    assert all(isinstance(row, RequestRow) for row in rows)
    return [row.id for row in rows if isinstance(row, RequestRow)]


def shape(row: RequestRow | RejectedRow) -> tuple[int, str | None, str]:
    if isinstance(row, RequestRow):
        return row.line, row.id, "valid"
    return row.line, row.request_id, row.code


def test_rows_come_in_file_order_whatever_they_are() -> None:
    rows = rows_of(
        b'{"id": "a", "prompt": "p"}',
        b"{",
        None,
        b'{"id": "b", "prompt": "\xff"}',
        b'{"id": "c", "prompt": ""}',
        b'{"id": "d", "prompt": "p"}',
    )
    assert [shape(row) for row in rows] == [
        (1, "a", "valid"),
        (2, None, "invalid_json"),
        (3, None, "line_too_long"),
        (4, None, "invalid_utf8"),
        (5, "c", "invalid_request"),
        (6, "d", "valid"),
    ]
    too_long = rows[2]
    assert isinstance(too_long, RejectedRow)
    assert too_long.message == "line is longer than 8 MiB"


def test_the_first_of_equal_ids_has_it() -> None:
    line = b'{"id": "a", "prompt": "p"}'
    rows = rows_of(line, line, b'{"id": "a", "prompt": "another"}')
    assert [shape(row) for row in rows] == [
        (1, "a", "valid"),
        (2, "a", "duplicate_id"),
        (3, "a", "duplicate_id"),
    ]
    assert isinstance(rows[1], RejectedRow)
    assert rows[1].message == 'id "a" is that of an earlier row; only the first one with an id is answered'


def test_a_rejected_row_keeps_its_id() -> None:
    rows = rows_of(b'{"id": "a", "prompt": "p", "max_tokens": 0}', b'{"id": "a", "prompt": "p"}')
    assert [shape(row) for row in rows] == [(1, "a", "invalid_request"), (2, "a", "duplicate_id")]


def test_a_row_whose_id_could_not_be_read_keeps_none() -> None:
    rows = rows_of(b'{"id": "a", "prompt": ', b'{"id": "a", "prompt": "p"}')
    assert [shape(row) for row in rows] == [(1, None, "invalid_json"), (2, "a", "valid")]


def test_a_row_that_is_both_wrong_and_a_duplicate_has_one_error() -> None:
    rows = rows_of(b'{"id": "a", "prompt": "p"}', b'{"id": "a"}')
    assert [shape(row) for row in rows] == [(1, "a", "valid"), (2, "a", "invalid_request")]


def test_equal_lines_without_an_id_are_told_apart_by_their_occurrence() -> None:
    first, second, other = ids_of(b'{"prompt": "p"}', b'{"prompt": "p"}', b'{"prompt": "q"}')
    assert first.removesuffix("-1") == second.removesuffix("-2")
    assert len(first) == 34
    assert other.endswith("-1")
    assert len({first, second, other}) == 3


def test_made_ids_are_the_same_in_every_version() -> None:
    assert ids_of(b'{"prompt": "p"}') == ["be3b62717dbeef699091cffd992524c6-1"]


@given(st.lists(st.sampled_from(["a", "b", "c"]), max_size=8), st.data())
def test_made_ids_do_not_depend_on_other_lines(prompts: list[str], data: st.DataObject) -> None:
    lines = [orjson.dumps({"prompt": prompt}) for prompt in prompts]
    moved = data.draw(st.permutations(lines))
    others = [b'{"id": "x", "prompt": "z"}', b'{"prompt": "y"}']
    ids = ids_of(*lines)
    assert len(set(ids)) == len(ids)
    assert sorted(ids_of(*moved)) == sorted(ids)
    assert sorted(ids_of(*others, *moved)[2:]) == sorted(ids)


def test_a_given_id_that_looks_like_a_made_one_is_not_taken_twice() -> None:
    made = ids_of(b'{"prompt": "p"}')[0]
    given_id = orjson.dumps({"id": made, "prompt": "q"})
    for lines in ((b'{"prompt": "p"}', given_id), (given_id, b'{"prompt": "p"}')):
        first, second = rows_of(*lines)
        assert isinstance(first, RequestRow)
        assert isinstance(second, RejectedRow)
        assert second.code == RowErrorCode.DUPLICATE_ID


def test_the_limit_counts_rejected_rows() -> None:
    lines = (b"{", b'{"id": "a", "prompt": "p"}', b'{"id": "b", "prompt": "p"}')
    assert [shape(row) for row in rows_of(*lines, limit=2)] == [(1, None, "invalid_json"), (2, "a", "valid")]
    assert len(rows_of(*lines, limit=9)) == 3


def test_the_limit_reads_no_line_too_many() -> None:
    def lines() -> Iterator[RawLine]:
        yield RawLine(1, b'{"prompt": "p"}')
        raise AssertionError("read on")

    assert len(list(RowStream(lines(), RowDefaults(), limit=1))) == 1


def test_defaults_reach_the_rows() -> None:
    (row,) = RowStream([RawLine(1, b'{"prompt": "p"}')], RowDefaults(adapter="usual"))
    assert isinstance(row, RequestRow)
    assert row.adapter == "usual"


def test_a_line_of_ten_megabytes_costs_one_row_and_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(
        b'{"id": "a", "prompt": "' + b"x" * 10_000_000 + b'"}\r\n\r\n{"id": "b", "prompt": "p"}\r\n'
    )
    tracemalloc.start()
    try:
        with LineSource(str(path)) as source:
            rows = list(RowStream(source, RowDefaults()))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [shape(row) for row in rows] == [(1, None, "line_too_long"), (3, "b", "valid")]
    assert peak_bytes < 3 * MAX_LINE_BYTES


def test_many_rows_take_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with path.open("wb") as out:
        out.writelines(b'{"id": "request-%d", "prompt": "p"}\n' % number for number in range(20_000))
    tracemalloc.start()
    try:
        with LineSource(str(path)) as source:
            assert sum(isinstance(row, RequestRow) for row in RowStream(source, RowDefaults())) == 20_000
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20


def arriving_rows(*lines: bytes, default: str | None = None) -> list[RequestRow | RejectedRow]:
    """The n-th row, from 0, arrives at n seconds and invokes a function with adapter fn; row 2 none."""
    arrivals = (RowArrival(n * 1000.0, None if n == 2 else f"f{n}") for n in count())
    numbered = [RawLine(number, line) for number, line in enumerate(lines, start=1)]
    return list(RowStream(numbered, RowDefaults(adapter=default), arrivals=arrivals))


def test_every_row_takes_an_arrival_and_rejected_ones_too() -> None:
    rows = arriving_rows(
        b'{"prompt": "p"}',
        b"{",
        b'{"prompt": "p"}',
        b'{"prompt": "p", "adapter": null}',
        b'{"prompt": "p", "adapter": "own", "arrival_ms": null}',
        default="usual",
    )
    assert [(row.line, row.arrival_ms, row.adapter) for row in rows if isinstance(row, RequestRow)] == [
        (1, 0.0, "f0"),
        (3, 2000.0, "usual"),
        (4, 3000.0, None),
        (5, 4000.0, "own"),
    ]


def test_an_arrival_of_its_own_is_refused_where_a_process_says_it() -> None:
    with pytest.raises(OptionError, match=r"^--rate, --arrivals: line 2 of the requests has an arrival_ms"):
        arriving_rows(b'{"prompt": "p"}', b'{"prompt": "p", "arrival_ms": 0}')


def test_a_row_that_was_passed_over_claims_its_id_and_its_arrival() -> None:
    passed = []
    lines = [
        RawLine(1, b"", done_id="a"),
        RawLine(2, b"", done_id="a"),
        RawLine(3, b'{"id": "a", "prompt": "p"}'),
        RawLine(4, b'{"id": "b", "prompt": "p"}'),
    ]
    arrivals = iter(RowArrival(float(ms), None) for ms in range(4))
    rows = list(RowStream(lines, RowDefaults(), None, arrivals, lambda: passed.append(1)))
    assert len(passed) == 1
    assert [(row.line, row.code) for row in rows[:2] if isinstance(row, RejectedRow)] == [
        (2, RowErrorCode.DUPLICATE_ID),
        (3, RowErrorCode.DUPLICATE_ID),
    ]
    (last,) = rows[2:]
    assert isinstance(last, RequestRow)
    assert (last.id, last.arrival_ms) == ("b", 3.0)
