"""Reads, checks and tokenises requests ahead of the engine, in a thread of its own.

The queue between them is bounded, so memory does not grow with the file; a slow standard input never holds
up the requests that are already running.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from caraserve_cli.core import Request, RequestRow
from caraserve_cli.job.prepare import Preparer
from caraserve_cli.requests.stream import RejectedRow

Prepared = Request | RejectedRow

# How long a read under way is waited for at the end: a block of a file, from afar. Chosen, not measured.
_LAST_READ_S = 10.0


class _End:
    """The last thing in the queue: the input is exhausted, or reading it failed."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class Intake:
    """Prepared requests in the order of the input.

    Args:
        rows: the input; iterated in the thread.
        preparer: tokenises.
        is_done: rows to pass over, already answered or rejected in an earlier session.
        window: how many prepared rows may wait.
        batch_rows: rows tokenised together; 1 where rows arrive slowly and none should wait for the next.
            Such a source may also be silent for ever, so that closing does not wait for it.
    """

    def __init__(
        self,
        rows: Iterator[RequestRow | RejectedRow],
        preparer: Preparer,
        is_done: Callable[[RequestRow | RejectedRow], bool],
        window: int,
        batch_rows: int,
    ) -> None:
        self._rows = rows
        self._preparer = preparer
        self._is_done = is_done
        self._batch_rows = batch_rows
        self._queue: queue.Queue[Prepared | _End] = queue.Queue(maxsize=window)
        self._stopped = threading.Event()
        self._end: _End | None = None
        self._thread = threading.Thread(target=self._read, name="caraserve-intake", daemon=True)
        self._thread.start()

    @property
    def exhausted(self) -> bool:
        """Whether every row was taken, and the error that ended the reading, if one did, was raised."""
        return self._end is not None and self._end.error is None

    def take(self, most: int, wait_s: float | None) -> list[Prepared]:
        """Up to `most` prepared rows; waits up to `wait_s` for the first one, not at all if None.

        Raises:
            CaraServeError: what ended the reading; once, after the rows before it were taken.
        """
        taken: list[Prepared] = []
        while len(taken) < most and self._end is None:
            try:
                item = self._queue.get(block=wait_s is not None and not taken, timeout=wait_s)
            except queue.Empty:
                break
            if isinstance(item, _End):
                self._end = item
            else:
                taken.append(item)
        if not taken and self._end is not None and self._end.error is not None:
            error, self._end = self._end.error, _End(None)
            raise error
        return taken

    def close(self) -> None:
        """Stop reading; what is in the queue is dropped. Then the input can be closed, if it answers."""
        self._stopped.set()
        self._end = _End(None)
        if self._batch_rows > 1:
            self._thread.join(_LAST_READ_S)

    def _read(self) -> None:
        error: BaseException | None = None
        try:
            batch: list[RequestRow | RejectedRow] = []
            for row in self._rows:
                if not self._is_done(row):
                    batch.append(row)
                if len(batch) >= self._batch_rows:
                    self._put_batch(batch)
                    batch = []
                if self._stopped.is_set():
                    return
            self._put_batch(batch)
        except BaseException as caught:  # handed to the thread that takes
            error = caught
        self._put(_End(error))

    def _put_batch(self, batch: list[RequestRow | RejectedRow]) -> None:
        prepared = iter(self._preparer.prepare([row for row in batch if isinstance(row, RequestRow)]))
        for row in batch:
            self._put(row if isinstance(row, RejectedRow) else next(prepared))

    def _put(self, item: Prepared | _End) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return
