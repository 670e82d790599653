"""Whether the head of a Ray cluster is there, which no call to Ray tells: without it, Ray's calls wait for a
minute and then end this process. Imports no Ray."""

from __future__ import annotations

import socket
import time

from caraserve_cli.errors import InputError

# How often it is looked for. Chosen, not measured: a connection to a head on the same machine takes 0.1 ms.
_INTERVAL_S = 2.0
_CONNECT_S = 0.5


class HeadWatch:
    """Looks for the head's port now and then.

    Args:
        address: HOST:PORT of the head (its Global Control Service).
        patience_s: for how long it may be away, from when that is first seen: what this process did before,
            or that it was stopped itself, says nothing of the head.

    Attributes:
        is_there: whether it was, when it was last looked for.
    """

    def __init__(self, address: str, patience_s: float) -> None:
        host, _, port = address.rpartition(":")
        self._address, self._host, self._port = address, host.strip("[]"), int(port)
        self._patience_s = patience_s
        self.is_there = True
        self._looked_s = time.monotonic()
        self._away_since_s: float | None = None

    def check(self) -> None:
        """Look for it, if it is time to.

        Raises:
            InputError: it is gone.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < _INTERVAL_S:
            return
        self.is_there = self._answers()
        self._looked_s = time.monotonic()
        if self.is_there:
            self._away_since_s = None
            return
        if self._away_since_s is None:
            self._away_since_s = now_s
        away_s = self._looked_s - self._away_since_s
        if away_s > self._patience_s:
            raise InputError(
                f"the Ray cluster has ended: its head at {self._address} has not answered for "
                f"{away_s:.0f} s; to go on, give the same command with --resume"
            )

    def _answers(self) -> bool:
        try:
            socket.create_connection((self._host, self._port), _CONNECT_S).close()
        except OSError:
            return False
        return True
