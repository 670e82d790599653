"""RowFile: whole rows only, whatever cut the file short."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.errors import OutputError
from caraserve_cli.requests.row_file import RowFile

ROWS = [{"id": f"r{number}", "text": "line\nend \u2028 é" * number} for number in range(6)]


def write_rows(path: Path) -> bytes:
    file = RowFile(path)
    for row in ROWS:
        file.append(row)
    file.close()
    return path.read_bytes()


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A real failure of a write: past this size the kernel refuses, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_reach_the_file_with_the_flush(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = RowFile(path)
    file.append({"id": "a"})
    file.append({"id": "b"})
    assert path.read_bytes() == b""
    file.flush()
    assert path.read_bytes() == b'{"id":"a"}\n{"id":"b"}\n'
    file.append({"id": "c"})
    assert [row["id"] for row in file.rows()] == ["a", "b", "c"]
    assert file.num_rows == 3
    file.close()
    file.close()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_file_cut_anywhere_keeps_its_whole_rows(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "rows.jsonl"
    content = write_rows(path)
    size_bytes = data.draw(st.integers(0, len(content)))
    garbage = data.draw(st.sampled_from([b"", b"\0\0\0", b'{"id": "x"', b'{"id": "x"}', b"}\n", b"7\n"]))
    num_whole = content[:size_bytes].count(b"\n")
    # Garbage stands for what a crash of the machine may leave: it counts as part of the torn line.
    torn = content[:size_bytes] + (garbage if content[:size_bytes].endswith(b"\n") or not size_bytes else b"")
    path.write_bytes(torn)
    file = RowFile(path)
    assert list(file.recover()) == ROWS[:num_whole]
    assert file.num_rows == num_whole
    for row in ROWS[num_whole:]:
        file.append(row)
    file.close()
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", [b"garbage\n", b"\n", b"[1]\n", b"\0\0\0\n", b'{"id":"x"\n'])
def test_damage_in_the_middle_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    content = b'{"id":"a"}\n' + damage + b'{"id":"b"}\n'
    path.write_bytes(content)
    file = RowFile(path)
    with pytest.raises(OutputError) as caught:
        list(file.recover())
    file.close()
    assert str(caught.value) == (
        f"'{path}' is damaged at line 2; mend or remove that line, or choose another --out"
    )
    assert path.read_bytes() == content


def test_a_full_disk_is_one_line_and_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    file = RowFile(path)
    file.append({"id": "a"})
    file.flush()
    with largest_file(20):
        file.append({"id": "b", "text": "x" * 100})
        with pytest.raises(OutputError) as caught:
            file.flush()
    assert str(caught.value) == (
        f"'{path}' cannot be written: File too large; free some space, then continue with --resume"
    )
    assert path.read_bytes() == b'{"id":"a"}\n'
    assert file.num_rows == 1
    file.append({"id": "c"})
    file.close()
    assert [orjson.loads(line)["id"] for line in path.read_bytes().splitlines()] == ["a", "c"]


def test_a_device_without_space(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.symlink_to("/dev/full")
    file = RowFile(path)
    file.append({"id": "a"})
    with pytest.raises(OutputError, match="cannot be written: No space left on device"):
        file.flush()
    file.close()


def test_rows_can_be_set_aside(tmp_path: Path) -> None:
    path, aside = tmp_path / "rows.jsonl", tmp_path / "before.jsonl"
    file = RowFile(path)
    file.append({"id": "a"})
    file.close()
    for _ in range(2):  # where there are none, what was set aside before stays
        file = RowFile(path)
        file.set_aside(aside)
        assert (list(file.rows()), aside.read_bytes()) == ([], b'{"id":"a"}\n')
        file.close()
    file = RowFile(path)
    file.append({"id": "c"})
    file.set_aside(aside)
    assert file.num_rows == 0
    file.append({"id": "d"})
    file.close()
    assert (path.read_bytes(), aside.read_bytes()) == (b'{"id":"d"}\n', b'{"id":"c"}\n')


def test_two_cannot_lock_one_file(tmp_path: Path) -> None:
    first, second = RowFile(tmp_path / "rows.jsonl"), RowFile(tmp_path / "rows.jsonl")
    first.lock()
    with pytest.raises(OutputError, match="another caraserve run is using"):
        second.lock()
    first.close()
    second.lock()
    second.close()


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"rows.jsonl' cannot be opened: No such file or directory"):
        RowFile(tmp_path / "missing" / "rows.jsonl")
