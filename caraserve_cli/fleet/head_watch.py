"""Whether the head of a Ray cluster is there, which no call to Ray tells: without it, Ray's calls wait for a
minute and then end this process. Imports no Ray."""

from __future__ import annotations

import socket
import time
from typing import Literal, TypeAlias

from caraserve_cli.errors import InputError

# How often it is looked for. Chosen, not measured: a head on the same machine answers in a millisecond.
_INTERVAL_S = 2.0
_CONNECT_S, _ANSWER_S = 0.5, 1.0
# For how long it may take connections and answer nothing, as a stopped process does, and one that has no time
# for a while. Chosen, not measured.
_SILENCE_S = 60.0
# How a client of HTTP/2, and so of gRPC, begins, with settings of which there are none. A server answers it.
GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
# The type of the frame that tells settings, in its fourth byte.
_SETTINGS_FRAME = 4

_State: TypeAlias = Literal["there", "silent", "away"]


def is_greeting(connection: socket.socket) -> bool:
    """Whether the first that comes is how a server of HTTP/2 begins.

    Raises:
        OSError: nothing comes, in time or any more.
    """
    start = b""
    while len(start) < 4 and (more := connection.recv(4 - len(start))):
        start += more
    return len(start) == 4 and start[3] == _SETTINGS_FRAME


class HeadWatch:
    """Looks now and then whether the head answers.

    Args:
        address: HOST:PORT of the head (its Global Control Service).
        patience_s: for how long it may be away, from when that is first seen: what this process did before,
            or that it was stopped itself, says nothing of the head.
    """

    def __init__(self, address: str, patience_s: float) -> None:
        host, _, port = address.rpartition(":")
        self._address, self._host, self._port = address, host.strip("[]"), int(port)
        self._patience_s: dict[_State, float] = {"away": patience_s, "silent": max(patience_s, _SILENCE_S)}
        self._state: _State = "there"
        self._looked_s = self._since_s = time.monotonic()

    @property
    def is_there(self) -> bool:
        """Whether it answered, when it was last looked for."""
        return self._state == "there"

    @property
    def is_silent(self) -> bool:
        """Whether it took a connection then, and did not answer: Ray waits for it without end."""
        return self._state == "silent"

    def check(self) -> None:
        """Look for it, if it is time to.

        Raises:
            InputError: it is gone.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < _INTERVAL_S:
            return
        self.look()
        if self.is_there:
            return
        missing_s = self._looked_s - self._since_s
        if missing_s > self._patience_s[self._state]:
            raise InputError(
                f"the Ray cluster has ended: its head at {self._address} has not answered for "
                f"{missing_s:.0f} s; to go on, give the same command with --resume"
            )

    def look(self) -> None:
        """Look for it now."""
        now_s = time.monotonic()
        state = self._find_state()
        if state != self._state:
            self._state, self._since_s = state, now_s
        self._looked_s = time.monotonic()

    def _find_state(self) -> _State:
        try:
            connection = socket.create_connection((self._host, self._port), _CONNECT_S)
        except OSError:
            return "away"
        with connection:
            connection.settimeout(_ANSWER_S)
            try:
                connection.sendall(GREETING)
                connection.recv(1)  # nothing, if it ends the connection: that takes somebody, too
            except TimeoutError:
                return "silent"
            except OSError:
                return "away"
        return "there"
