"""The place of one CPU worker in the pool: the process that has it now, and the tickets it was given."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from caraserve_cli.coldstart.nursery_process import NurseryProcess
from caraserve_cli.coldstart.ticket_memory import Ticket
from caraserve_cli.coldstart.worker import PLACE_MESSAGE, READY_MESSAGE

# A process that dies before it is ready is started again this often in a row. Chosen, not measured.
_MOST_FAILED_STARTS = 3


class GivenTicket(NamedTuple):
    """A ticket that a worker was given, and the place of the ticket memory in which it lies."""

    ticket: Ticket
    place: int


@dataclass(slots=True, eq=False)
class WorkerSeat:
    """One index of the pool.

    Attributes:
        index: of the worker.
        core: that it is pinned to.
        wakes: this end of the process's socket; None if there is no process.
        pid: of the process; 0 until it is ready.
        given: tickets that this process was given and has not ended, oldest first.
        late_since_s: when it was first seen that it is late; None if it is not.
        asked_s: when the process was asked for.
    """

    index: int
    core: int
    wakes: socket.socket | None = None
    pid: int = 0
    given: list[GivenTicket] = field(default_factory=list)
    late_since_s: float | None = None
    asked_s: float = 0.0
    _num_failed_starts: int = 0

    @property
    def is_ready(self) -> bool:
        """Whether a process waits for tickets, or works at some."""
        return self.pid > 0

    @property
    def is_given_up(self) -> bool:
        """Whether its processes die before they are ready, time and again."""
        return self._num_failed_starts >= _MOST_FAILED_STARTS

    def start(self, nursery: NurseryProcess) -> None:
        """Ask for a process, if there is none."""
        if self.wakes is None and not self.is_given_up:
            self.asked_s = time.monotonic()
            self.wakes = nursery.fork(self.index, self.core)

    def listen(self) -> bool:
        """Take what the process has sent; False if it is dead, and the seat is then free.

        It is dead when its socket is closed: the kernel takes a process's memory before its files, so it
        writes nothing any more.
        """
        assert self.wakes is not None
        try:
            message = self.wakes.recv(READY_MESSAGE.size)
        except BlockingIOError:
            return True
        except OSError:
            message = b""
        if message:
            (self.pid,) = READY_MESSAGE.unpack(message)
            self._num_failed_starts = 0
            return True
        self._num_failed_starts += not self.is_ready
        self.leave()
        return False

    def give(self, given: GivenTicket) -> None:
        """Tell the process of a ticket. If it is dead the ticket is lost; `listen` finds out."""
        assert self.wakes is not None
        self.given.append(given)
        try:
            self.wakes.send(PLACE_MESSAGE.pack(given.place), socket.MSG_NOSIGNAL)
        except OSError:
            return

    def forget_ended(self, done: int) -> None:
        """Drop the tickets of which it has done the last op, `done` being the last op that it has done."""
        while self.given and self.given[0].ticket.last_number <= done:
            del self.given[0]
        if not self.given:
            self.late_since_s = None

    def note_late(self, failed: int) -> None:
        """See whether a ticket has failed that it has not ended, `failed` being the last op that has."""
        is_late = bool(self.given) and self.given[0].ticket.first_number <= failed
        if not is_late:
            self.late_since_s = None
        elif self.late_since_s is None:
            self.late_since_s = time.monotonic()

    def leave(self) -> None:
        """The process is gone, or is to go: nothing is sent to it any more."""
        if self.wakes is not None:
            self.wakes.close()
        self.wakes, self.pid, self.late_since_s = None, 0, None
        self.given.clear()
