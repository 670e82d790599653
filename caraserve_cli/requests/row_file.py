"""One append-only JSONL file that survives being killed at any moment.

Knows whole rows, torn ends and locks; does not know what a row means.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import orjson

from caraserve_cli.errors import OutputError


class RowFile:
    """A file of JSON objects, one a line, open for appending.

    Args:
        path: made if it is missing, in a folder that exists.

    Raises:
        OutputError: it cannot be opened or made. Every method raises it for a failure of the disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows = 0
        self._pending: list[bytes] = []
        self._descriptor = self._open()

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise self._failed("opened", error) from None

    def lock(self) -> None:
        """Keep other runs out until this file is closed; the kernel lifts the lock when the process dies.

        Raises:
            OutputError: another process has the lock, or the file system has no locks.
        """
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"another caraserve run is using '{self.path.parent}'; wait for it or choose another --out"
            ) from None
        except OSError as error:
            raise self._failed("locked", error) from None

    def recover(self) -> Iterator[dict[str, object]]:
        """Every whole row; afterwards a torn last line has been cut off. Run it to its end before appending.

        Raises:
            OutputError: a line other than the last is no JSON object.
        """
        self.num_rows = 0
        size_bytes = 0
        try:
            with self.path.open("rb") as file:
                for line in file:
                    row = _parse(line)
                    if row is None and file.read(1):
                        raise self._damaged()
                    if row is None:
                        break
                    size_bytes += len(line)
                    self.num_rows += 1
                    yield row
            os.ftruncate(self._descriptor, size_bytes)
        except OSError as error:
            raise self._failed("read and mended", error) from None

    def rows(self) -> Iterator[dict[str, object]]:
        """Every row that was written, in order, pending ones included."""
        self.flush()
        try:
            with self.path.open("rb") as file:
                for line in file:
                    yield orjson.loads(line)
        except OSError as error:
            raise self._failed("read", error) from None

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row; it is safe from kill -9 after the next `flush`."""
        self._pending.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        self.num_rows += 1

    def flush(self) -> None:
        """Hand all pending rows to the kernel, in one write.

        Raises:
            OutputError: the disk is full or failed; the pending rows are dropped, the file ends with a whole
                row.
        """
        if not self._pending:
            return
        data, num_pending = memoryview(b"".join(self._pending)), len(self._pending)
        self._pending.clear()
        size_bytes = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            self.num_rows -= num_pending
            with suppress(OSError):
                os.ftruncate(self._descriptor, size_bytes)
            raise self._failed("written", error, "; free some space, then continue with --resume") from None

    def sync(self) -> None:
        """Flush, and wait until the disk has it."""
        self.flush()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed("written", error) from None

    def set_aside(self, path: Path) -> None:
        """Begin without rows; those of the file, if it has any, are in another one, in place of what that
        held. Not for a file that is locked."""
        self.flush()
        try:
            if not os.fstat(self._descriptor).st_size:
                return
            self.path.replace(path)
        except OSError as error:
            raise self._failed("renamed", error) from None
        self.close()
        self._descriptor, self.num_rows = self._open(), 0

    def close(self) -> None:
        """Flush and close, which lifts the lock; closing twice is no error."""
        if self._descriptor < 0:
            return
        try:
            self.flush()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1

    def _damaged(self) -> OutputError:
        line = self.num_rows + 1
        return OutputError(
            f"'{self.path}' is damaged at line {line}; mend or remove that line, or choose another --out"
        )

    def _failed(self, what: str, error: OSError, advice: str = "") -> OutputError:
        return OutputError(f"'{self.path}' cannot be {what}: {error.strerror}{advice}")


def _parse(line: bytes) -> dict[str, object] | None:
    """The row in a line; None for a line that is torn or is no JSON object."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return row if isinstance(row, dict) else None
