"""The thread that reads adapters before they are needed, one after the other.

It ends with the process, but not amidst torch's native code: that would abort it.

What is to be read next, and how, is the host store's to say.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable


class AdapterReader:
    """A daemon thread, begun with the first `wake`.

    Args:
        changed: the lock under which `choose` is called. It must be notified whenever that may have another
            answer.
        choose: the name of an adapter to be read now, or None; it counts as begun.
        read: reads it; called without the lock. It must not raise.
    """

    def __init__(
        self,
        changed: threading.Condition,
        choose: Callable[[], str | None],
        read: Callable[[str], None],
    ) -> None:
        self._changed, self._choose, self._read = changed, choose, read
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def wake(self) -> None:
        """Look for something to read; the lock must be held."""
        if self._thread is None and not self._is_closed:
            self._thread = threading.Thread(target=self._run, name="adapter reader", daemon=True)
            self._thread.start()
            atexit.register(self.close)
        self._changed.notify_all()

    def close(self) -> None:
        """Finish what is being read and end the thread; the lock must not be held."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self.close)

    def _run(self) -> None:
        while (name := self._next()) is not None:
            self._read(name)

    def _next(self) -> str | None:
        """Waits for something to read; None once the reader is closed."""
        with self._changed:
            while not self._is_closed:
                if (name := self._choose()) is not None:
                    return name
                self._changed.wait()
            return None
