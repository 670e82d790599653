"""A requests file, plain or compressed, or standard input, as a stream of lines in bounded memory.

Knows bytes and line ends; does not know what a line says.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from os import fstat
from pathlib import PurePath
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeAlias

import zstandard

from caraserve_cli.errors import InputError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# A longer line is passed over without being held, and becomes an error row.
MAX_LINE_BYTES = 8 * 2**20

_STDIN = "-"
_PLAIN_SUFFIXES = ("", ".jsonl", ".ndjson", ".json", ".txt")
_SUPPORTED = ".jsonl, .jsonl.gz, .jsonl.zst, .parquet, .arrow, .csv, or - for standard input"
_UTF8_BOM = b"\xef\xbb\xbf"
_SKIP_CHUNK_BYTES = 64 * 1024
# A zstd block of 4 bytes can unfold to 128 KiB: this much input to at most 8 MiB.
_ZSTD_INPUT_BYTES = 256


# Whether an earlier session has dealt with a row, by its number and its id; whether it may carry a bound.
IsDone: TypeAlias = Callable[[int, str, bool], bool]


class RawLine(NamedTuple):
    """A line that is not blank, without its end. `number` counts every line of the file, from 1; `data` is
    None for a line longer than MAX_LINE_BYTES. `problem` is why a table's row could not become a line.
    `done_id` is that of a row of a table whose content was not read: an earlier session has dealt with it."""

    number: int
    data: bytes | None
    problem: str | None = None
    done_id: str | None = None


class LineSource:
    """The lines of one requests file. Iterate once; close when done.

    Args:
        source: path of a .jsonl file (also .gz, .zst), or `-` for standard input.

    Raises:
        InputError: the file is missing, unreadable or of a kind that is not supported; while iterating:
            it is damaged, with the last line that could be read.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._name = "standard input" if source == _STDIN else f"requests file '{source}'"
        compression = "" if source == _STDIN else _compression(source)
        try:
            # File descriptor 0 itself: sys.stdin would hold lines back until its buffer is full.
            self._file = _CountedFile(0, closefd=False) if source == _STDIN else _CountedFile(source)
        except FileNotFoundError:
            raise InputError(f"{self._name} does not exist") from None
        except IsADirectoryError:
            raise InputError(f"{self._name} is a folder; name a file in it ({_SUPPORTED})") from None
        except OSError as error:
            raise InputError(f"{self._name} cannot be read: {error.strerror}") from None
        status = fstat(self._file.fileno())
        self.total_bytes: int | None = status.st_size if stat.S_ISREG(status.st_mode) else None
        self._reader = _decompressed(io.BufferedReader(self._file), compression)

    @property
    def bytes_read(self) -> int:
        """Bytes taken from the file so far (compressed ones, if it is compressed), out of `total_bytes`;
        that is None for standard input and pipes."""
        return self._file.num_bytes

    def __iter__(self) -> Iterator[RawLine]:
        number = 0
        while True:
            try:
                line = self._read_line()
            except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
                raise self._damaged(number, error) from None
            if line == b"":
                return
            number += 1
            if number == 1 and line is not None:
                line = line.removeprefix(_UTF8_BOM)
            data = line if line is None else line.rstrip()
            if data != b"":
                yield RawLine(number, data)

    def pass_over(self, is_done: IsDone) -> None:
        """A line's id is not known without reading it."""

    def place(self, number: int) -> str:
        """See `RequestSource`."""
        return f"{self._source}:{number}"

    def close(self) -> None:
        """Close the file; standard input and pipes stay open, for closing waits for a thread that reads."""
        if self.total_bytes is None:
            return
        self._reader.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _damaged(self, last_line: int, error: Exception) -> InputError:
        reason = getattr(error, "strerror", None) or error
        if last_line == 0:
            return InputError(f"{self._name} cannot be read: {reason}")
        advice = "replace it, then continue with --resume"
        return InputError(f"{self._name} cannot be read beyond line {last_line}: {reason}; {advice}")

    def _read_line(self) -> bytes | None:
        """The next line with its end, b"" after the last one, None for one that is too long."""
        line = self._reader.readline(MAX_LINE_BYTES + 1)
        if len(line) <= MAX_LINE_BYTES or line.endswith(b"\n"):
            return line
        while line and not line.endswith(b"\n"):
            line = self._reader.readline(_SKIP_CHUNK_BYTES)
        return None


def check_exists(source: str) -> None:
    """Look for the file without opening it, which would wait for whoever writes into a pipe.

    Raises:
        InputError: it is missing, or of a kind that is not supported.
    """
    if source == _STDIN:
        return
    _compression(source)
    if not os.path.lexists(source):
        raise InputError(f"requests file '{source}' does not exist")


class _CountedFile(io.FileIO):
    """A file that counts the bytes read from it: the position of a pipe can be asked for no other way."""

    num_bytes = 0

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        num_bytes = super().readinto(buffer)
        self.num_bytes += num_bytes
        return num_bytes


class _ZstdReader(io.RawIOBase):
    """The content of one or more zstd frames.

    zstandard's own stream reader takes a truncated file for a complete one; this one raises EOFError.
    """

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: zstandard.ZstdDecompressionObj | None = None  # None between frames
        self._compressed = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        while not self._content:
            compressed = self._compressed or self._file.read(_ZSTD_INPUT_BYTES)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("Compressed file ended in the middle of a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            self._content = memoryview(self._frame.decompress(compressed))
            self._compressed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        target = memoryview(buffer)
        num_bytes = min(len(target), len(self._content))
        target[:num_bytes] = self._content[:num_bytes]
        self._content = self._content[num_bytes:]
        return num_bytes

    def close(self) -> None:
        self._file.close()
        super().close()


def _compression(source: str) -> str:
    """'gz', 'zst' or '', by the file's name.

    Raises:
        InputError: the name is that of something which cannot be read.
    """
    path = PurePath(source)
    compression = path.suffix.lower() if path.suffix.lower() in (".gz", ".zst") else ""
    suffix = PurePath(path.stem).suffix.lower() if compression else path.suffix.lower()
    if suffix not in _PLAIN_SUFFIXES:
        kind = suffix + (path.suffix.lower() if compression else "")
        raise InputError(f"requests file '{source}': unknown kind '{kind}'; supported are {_SUPPORTED}")
    return compression.removeprefix(".")


def _decompressed(file: io.BufferedReader, compression: str) -> io.BufferedIOBase:
    if compression == "gz":
        return gzip.GzipFile(fileobj=file, mode="rb")
    if compression == "zst":
        return io.BufferedReader(_ZstdReader(file), buffer_size=64 * 1024)
    return file
