"""The process that forks the CPU workers: it has imported what they need, so that a new one is there in
milliseconds and shares its memory with the others.

It has one thread and runs no torch op, for a fork to be safe. It knows no tickets: it forks a worker when it
is told to, ends one when it is told to, takes the dead off the process table, and ends, with all of them,
when the process that started it closes the socket or is gone. Workers die with it.

`python -m caraserve_cli.coldstart.nursery FD`, FD being its end of a socket pair; see `nursery_process`.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import struct
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from caraserve_cli.coldstart.parent_death import die_with_parent
from caraserve_cli.coldstart.process_title import set_process_title
from caraserve_cli.import_pause import import_pause

if TYPE_CHECKING:
    from caraserve_cli.coldstart.worker import SharedMemory, WorkerSpec

# Worker and core to fork it on, with its end of a socket; or END_WORKER and the worker to kill.
NURSERY_MESSAGE = struct.Struct("ii")
END_WORKER = -1
# The first message: a pickled WorkerSpec, with the fds of the process to live with, arena, exchange, tickets.
MAX_SPEC_BYTES = 1 << 16
NUM_SPEC_FDS = 4


class Nursery:
    """Forks workers and watches them.

    Args:
        orders: its end of the socket.
        owner: pidfd of the process to live with.
        spec, memory: of the workers.
    """

    def __init__(self, orders: socket.socket, owner: int, spec: WorkerSpec, memory: SharedMemory) -> None:
        self._orders, self._owner, self._spec, self._memory = orders, owner, spec, memory
        # pidfd -> worker and its pid, of those not yet waited for: until then no other process has the pid.
        self._workers: dict[int, tuple[int, int]] = {}
        self._poll = select.poll()
        self._poll.register(orders, select.POLLIN)
        self._poll.register(owner, select.POLLIN)

    def serve(self) -> None:
        """Take orders until there is nobody to give them; no worker is left then."""
        try:
            is_wanted = True
            while is_wanted:
                for fd, _ in self._poll.poll():
                    if fd in self._workers:
                        self._bury(fd)
                    elif fd == self._owner or not self._take_order():
                        is_wanted = False
        finally:
            for fd, (_, pid) in list(self._workers.items()):
                os.kill(pid, signal.SIGKILL)
                self._bury(fd)

    def _take_order(self) -> bool:
        """Do what is asked; False if nobody asks any more."""
        message, fds, _, _ = socket.recv_fds(self._orders, NURSERY_MESSAGE.size, 1)
        if not message:
            return False
        first, second = NURSERY_MESSAGE.unpack(message)
        if first == END_WORKER:
            for index, pid in self._workers.values():
                if index == second:
                    os.kill(pid, signal.SIGKILL)
        else:
            with socket.socket(fileno=fds[0]) as wakes:
                self._fork(first, second, wakes)
        return True

    def _fork(self, index: int, core: int, wakes: socket.socket) -> None:
        nursery_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            # No room for a process: its socket is closed unused, which the pool takes for a death.
            return
        if pid == 0:
            self._become_worker(nursery_pid, index, core, wakes)
        fd = os.pidfd_open(pid)
        self._workers[fd] = index, pid
        self._poll.register(fd, select.POLLIN)

    def _become_worker(self, nursery_pid: int, index: int, core: int, wakes: socket.socket) -> NoReturn:
        status = 1
        try:
            die_with_parent(nursery_pid)
            set_process_title(f"caraserve-worker {index}")
            for fd in (self._orders.detach(), self._owner, *self._workers):
                os.close(fd)
            from caraserve_cli.coldstart.worker import run_worker

            run_worker(self._spec, self._memory, index, core, wakes)
            status = 0
        except ConnectionError:
            # The pool is closed.
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _bury(self, fd: int) -> None:
        _, pid = self._workers.pop(fd)
        os.waitpid(pid, 0)
        self._poll.unregister(fd)
        os.close(fd)


def main(orders_fd: int) -> None:
    """Be the nursery."""
    # What Ctrl-C means is decided by the process that everybody here lives with.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_process_title("caraserve-nursery")
    # What was imported stays shared: no collection writes to it.
    with import_pause():
        from caraserve_cli.coldstart.worker import SharedMemory
    with socket.socket(fileno=orders_fd) as orders, suppress(ConnectionError):
        message, fds, _, _ = socket.recv_fds(orders, MAX_SPEC_BYTES, NUM_SPEC_FDS)
        if len(fds) != NUM_SPEC_FDS:
            return
        owner, *memory_fds = fds
        spec: WorkerSpec = pickle.loads(message)
        memory = SharedMemory(spec, memory_fds)
        Nursery(orders, owner, spec, memory).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
    # Libraries that look for leaks when the interpreter ends would report what is frozen.
    os._exit(0)
