from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.errors import OptionError
from caraserve_cli.requests.arrival_trace import ArrivalTrace
from tests.requests.traces import write_trace

HEADER = "HashOwner,HashApp,HashFunction,Trigger,1,2,3\n"


def counts_of(trace: ArrivalTrace) -> list[dict[int, int]]:
    return [dict(zip(each.functions, each.counts, strict=True)) for each in trace.minutes]


def test_functions_are_numbered_by_popularity_and_equals_by_their_ids(tmp_path: Path) -> None:
    trace = ArrivalTrace.read(
        write_trace(tmp_path / "t.csv", {"rare": [1, 0, 0], "b": [0, 2, 2], "a": [4, 0, 0], "top": [0, 9, 0]})
    )
    assert counts_of(trace) == [{1: 4, 3: 1}, {0: 9, 2: 2}, {2: 2}]
    assert trace.num_invocations == 18
    assert trace.rate_per_s == pytest.approx(18 / 180)


def test_the_format_of_azure(tmp_path: Path) -> None:
    """1440 minutes, hashes as ids; a byte order mark, CRLF and a blank line do no harm."""
    header = "HashOwner,HashApp,HashFunction,Trigger," + ",".join(map(str, range(1, 1441)))
    row = ",".join(["8b" * 32, "c2" * 32, "0f" * 32, "timer", *["0", "3"] * 720])
    (tmp_path / "t.csv").write_bytes(f"\ufeff{header}\r\n{row}\r\n\r\n".encode())
    trace = ArrivalTrace.read(tmp_path / "t.csv")
    assert counts_of(trace) == [{}, {0: 3}] * 720
    assert trace.rate_per_s == pytest.approx(0.025)


def test_the_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    one, same, other = (
        ArrivalTrace.read(write_trace(tmp_path / name, {"f": counts})).digest
        for name, counts in (("a.csv", [1, 2]), ("b.csv", [1, 2]), ("c.csv", [2, 1]))
    )
    assert one == same != other


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("", ("line 1", "not the header of a trace", "HashOwner")),
        ("a,b,c\n", ("line 1", "not the header of a trace")),
        ("1,2,3\n1,2,3\n", ("line 1", "not the header of a trace")),
        ("HashFunction,1,3\nf,1,3\n", ("line 1", "not the header of a trace")),
        (HEADER, ("no invocations",)),
        (HEADER + "o,a,f,http,0,0,0\n", ("no invocations",)),
        (HEADER + "o,a,f,http,0,1,0\no,a,g,http,0,1\n", ("line 3", "6 columns, and the header 7")),
        (HEADER + "o,a,f,http,0,x,0\n", ("line 2", "minute 2 must be a count", "got 'x'")),
        (HEADER + "o,a,f,http,0,0,-4\n", ("line 2", "minute 3 must be a count", "got '-4'")),
        (HEADER + "o,a,f,http,0.5,0,0\n", ("minute 1 must be a count", "got '0.5'")),
        (HEADER + "o,a,f,http,,0,0\n", ("minute 1 must be a count", "got ''")),
        (HEADER + "o,a,f,http,4294967296,0,0\n", ("from 0 to 4294967295",)),
        (HEADER + "x" * 200_000 + ",a,f,http,0,0,0\n", ("line 2", "field larger than")),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_what_is_no_trace_is_refused(tmp_path: Path, content: str, fragments: tuple[str, ...]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(OptionError) as refused:
        ArrivalTrace.read(path)
    for fragment in ("--arrival-trace", str(path), *fragments):
        assert fragment in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"--arrival-trace: .*t\.csv' cannot be read: No such file"):
        ArrivalTrace.read(tmp_path / "t.csv")
