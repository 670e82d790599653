"""Several files and patterns: the lines of all, in order, numbered through."""

from __future__ import annotations

import os
from pathlib import Path

import datasets
import pytest

from caraserve_cli.errors import InputError, OptionError
from caraserve_cli.requests.many_sources import expand, open_all


def test_lines_are_numbered_through(tmp_path: Path) -> None:
    """Blank lines count, as they do in one file; a table may stand among files of lines."""
    (tmp_path / "b.jsonl").write_text("x\n\ny\n")
    (tmp_path / "a.jsonl").write_text("z")
    datasets.Dataset.from_dict({"prompt": ["p"]}).to_parquet(tmp_path / "c.parquet")
    sources = [str(tmp_path / name) for name in ("b.jsonl", "a.jsonl", "c.parquet")]
    with open_all(sources, None) as lines:
        total = lines.total_bytes
        assert total == sum(Path(source).stat().st_size for source in sources)
        assert [(line.number, line.data) for line in lines] == [
            (1, b"x"),
            (3, b"y"),
            (4, b"z"),
            (5, b'{"prompt":"p"}'),
        ]
        assert lines.bytes_read == total


def test_a_pipe_among_them_is_one(tmp_path: Path) -> None:
    """Whose writer may wait for answers."""
    file, pipe = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    file.write_text('{"id":"a","prompt":"x"}\n')
    with open_all([str(file), str(file)], None) as source:
        assert source.total_bytes == 2 * file.stat().st_size
    os.mkfifo(pipe)
    with open_all([str(file), str(pipe)], None) as source:
        assert source.total_bytes is None


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("day-2.jsonl", "day-1.jsonl", "odd[1].jsonl", "x.parquet"):
        (tmp_path / name).touch()
    assert expand(["x.parquet?split=train", "day-*.jsonl"]) == [
        "x.parquet?split=train",
        "day-1.jsonl",
        "day-2.jsonl",
    ]
    for as_they_are in (["odd[1].jsonl"], ["hf://o/n?split=a"], ["-"], []):
        assert expand(as_they_are) == as_they_are
    with pytest.raises(InputError, match=r"'night-[*].jsonl' does not exist, and as a pattern"):
        expand(["night-*.jsonl"])
    with pytest.raises(OptionError, match="standard input"):
        expand(["-", "day-1.jsonl"])
