"""Requests files on disk: kinds, line ends, damage, and bounded memory."""

import gzip
import io
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from caraserve_cli.errors import InputError
from caraserve_cli.requests.source import MAX_LINE_BYTES, LineSource, RawLine


def read(source: Path | str) -> list[RawLine]:
    with LineSource(str(source)) as lines:
        return list(lines)


def many_lines(count: int) -> bytes:
    return b"".join(
        b'{"prompt": "%d %s"}\n' % (number, os.urandom(20).hex().encode()) for number in range(count)
    )


def zst(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)  # as the zstd command does


COMPRESS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zst}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", []),
        (b"\n", []),
        (b"a\nb\n", [(1, b"a"), (2, b"b")]),
        (b"a\nb", [(1, b"a"), (2, b"b")]),
        (b"a\r\nb\r\n", [(1, b"a"), (2, b"b")]),
        (b"\n  \t\r\na\n\n\nb\n", [(3, b"a"), (6, b"b")]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", [(1, b"a"), (2, b"\xef\xbb\xbfb")]),
        (b"\xef\xbb\xbf\na\n", [(2, b"a")]),
        (b" a\n", [(1, b" a")]),
        ("\u2028x\n".encode(), [(1, "\u2028x".encode())]),
    ],
)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_lines(tmp_path: Path, data: bytes, expected: list[tuple[int, bytes]], compression: str) -> None:
    path = tmp_path / f"requests.jsonl{compression}"
    path.write_bytes(COMPRESS[compression](data))
    assert read(path) == [RawLine(*line) for line in expected]


@pytest.mark.parametrize("name", ["requests", "r.JSONL", "r.ndjson", "r.json", "r.txt"])
def test_plain_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"a\n")
    assert read(tmp_path / name) == [RawLine(1, b"a")]


@pytest.mark.parametrize(("name", "compress"), [("r.jsonl.gz", gzip.compress), ("r.zst", zst)])
def test_many_members_and_frames_are_one_file(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    first, second = many_lines(3000), many_lines(3000)
    path = tmp_path / name
    path.write_bytes(compress(first + b'{"cut') + compress(b"") + compress(b' here"}\n' + second))
    expected = [*first.splitlines(), b'{"cut here"}', *second.splitlines()]
    assert [line.data for line in read(path)] == expected


def test_zstd_frames_without_a_size_and_skippable_frames(tmp_path: Path) -> None:
    data = many_lines(2000)
    compressor = zstandard.ZstdCompressor().compressobj()
    skippable = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"abc"
    path = tmp_path / "r.jsonl.zst"
    path.write_bytes(skippable + compressor.compress(data) + compressor.flush() + skippable)
    assert [line.data for line in read(path)] == data.splitlines()


@pytest.mark.parametrize(("name", "compress"), [("r.jsonl.gz", gzip.compress), ("r.jsonl.zst", zst)])
@pytest.mark.parametrize("kept", [0.97, 0.5])
def test_a_truncated_file_gives_its_lines_and_then_an_error(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes], kept: float
) -> None:
    data = many_lines(20_000)
    compressed = compress(data)
    path = tmp_path / name
    path.write_bytes(compressed[: int(len(compressed) * kept)])
    lines: list[RawLine] = []
    with LineSource(str(path)) as source, pytest.raises(InputError) as caught:
        lines.extend(source)
    good = data.splitlines()
    assert len(lines) > len(good) * (kept - 0.2)
    assert [line.data for line in lines] == good[: len(lines)]
    message = str(caught.value)
    assert message.startswith(
        f"requests file '{path}' cannot be read beyond line {len(lines)}: Compressed file ended"
    )
    assert "\n" not in message


@pytest.mark.parametrize(("name", "compress"), [("r.jsonl.gz", gzip.compress), ("r.jsonl.zst", zst)])
def test_a_file_with_a_flipped_bit_is_an_error(
    tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    damaged = bytearray(compress(many_lines(20_000)))
    for position in range(len(damaged) // 2, len(damaged) // 2 + 64):
        damaged[position] ^= 0xFF
    (tmp_path / name).write_bytes(bytes(damaged))
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["r.jsonl.gz", "r.jsonl.zst"])
def test_a_plain_file_with_a_compressed_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"prompt": "a"}\n')
    with pytest.raises(InputError, match=r"cannot be read: ") as caught:
        read(tmp_path / name)
    assert "beyond" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "fragment"),
    [
        ("missing.jsonl", "requests file 'missing.jsonl' does not exist"),
        ("missing.jsonl.zst", "requests file 'missing.jsonl.zst' does not exist"),
        (".", "requests file '.' is a folder; name a file in it"),
        ("data.csv.gz", "requests file 'data.csv.gz': unknown kind '.csv.gz'; supported are .jsonl"),
        ("data.xml", "requests file 'data.xml': unknown kind '.xml'; supported are .jsonl"),
        ("data.jsonl.bz2", "unknown kind '.bz2'"),
        ("x" * 300 + ".jsonl", "cannot be read: File name too long"),
    ],
)
def test_what_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, fragment: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        LineSource(source)
    assert fragment in str(caught.value)


def test_a_line_of_the_greatest_length_is_read(file: Path) -> None:
    file.write_bytes(b"x" * MAX_LINE_BYTES + b"\ny\n")
    assert read(file) == [RawLine(1, b"x" * MAX_LINE_BYTES), RawLine(2, b"y")]
    file.write_bytes(b"x" * (MAX_LINE_BYTES + 1) + b"\ny\n")
    assert read(file) == [RawLine(1, None), RawLine(2, b"y")]
    file.write_bytes(b"y\n" + b"x" * (MAX_LINE_BYTES + 1))
    assert read(file) == [RawLine(1, b"y"), RawLine(2, None)]


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_a_line_of_any_length_takes_bounded_memory(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"r.jsonl{compression}"
    opened: dict[str, object] = {"": open, ".gz": gzip.open, ".zst": zstandard.open}
    opener = opened[compression]
    assert callable(opener)
    with opener(path, "wb") as out:
        for _ in range(64):
            out.write(b"x" * 2**20)
        out.write(b"\nshort\n")
    tracemalloc.start()
    try:
        lines = read(path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert lines == [RawLine(1, None), RawLine(2, b"short")]
    assert peak_bytes < 3 * MAX_LINE_BYTES + 2**20


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_the_position_is_that_in_the_file(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"r.jsonl{compression}"
    path.write_bytes(COMPRESS[compression](many_lines(20_000)))
    with LineSource(str(path)) as source:
        assert (source.bytes_read, source.total_bytes) == (0, path.stat().st_size)
        positions = [source.bytes_read for _ in source]
    assert positions == sorted(positions)
    assert 0 < positions[0] < path.stat().st_size / 2
    assert source.bytes_read == path.stat().st_size


def test_a_pipe_has_no_total(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"a\nb\n")
    os.close(write_end)
    try:
        with LineSource(f"/dev/fd/{read_end}") as source:
            assert source.total_bytes is None
            assert [line.data for line in source] == [b"a", b"b"]
            assert source.bytes_read == 4
    finally:
        os.close(read_end)


def test_standard_input_is_read_as_it_comes() -> None:
    script = (
        "from caraserve_cli.requests.source import LineSource\n"
        "source = LineSource('-')\n"
        "print(source.total_bytes, flush=True)\n"
        "for line in source: print(line.number, line.data, source.bytes_read, flush=True)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert isinstance(process.stdout, io.TextIOBase)
        process.stdin.write("first\n")
        process.stdin.flush()
        # The first line is answered although standard input is still open.
        assert process.stdout.readline() == "None\n"
        assert process.stdout.readline() == "1 b'first' 6\n"
        process.stdin.write("\nthird\n")
        process.stdin.close()
        assert process.stdout.read() == "3 b'third' 13\n"
    assert process.returncode == 0


def test_closed_standard_input_is_an_error() -> None:
    script = (
        "import os; os.close(0)\n"
        "from caraserve_cli.requests.source import LineSource\n"
        "from caraserve_cli.errors import InputError\n"
        "try: LineSource('-')\n"
        "except InputError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "standard input cannot be read: Bad file descriptor\n"
