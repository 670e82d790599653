"""The nursery as the process that started it sees it: orders go in, and it may be gone. Nothing here blocks
but `close`."""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from caraserve_cli.coldstart.nursery import END_WORKER, NURSERY_MESSAGE
from caraserve_cli.coldstart.worker import WorkerSpec

# It has little to do at its end; if it does not end, it is killed. Chosen, not measured.
_END_S = 5.0


class NurseryProcess:
    """Starts the nursery, in a session of its own: Ctrl-C at the terminal is not for it.

    It lives as long as this process, whichever thread has started it; it is started by exec, so it does not
    matter whether CUDA is in use here.

    Args:
        spec: of the workers.
        memory_fds: arena, exchange, tickets; they stay the caller's.

    Raises:
        OSError: the process cannot be started.
    """

    def __init__(self, spec: WorkerSpec, memory_fds: Sequence[int]) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._process = _start(theirs.fileno())
            except BaseException:
                self._orders.close()
                raise
        self._orders.setblocking(False)
        owner = os.pidfd_open(os.getpid())
        try:
            # It may be gone already; then nobody will ever be ready.
            with suppress(OSError):
                socket.send_fds(self._orders, [pickle.dumps(spec)], [owner, *memory_fds])
        finally:
            os.close(owner)

    @property
    def is_gone(self) -> bool:
        """Whether the process has ended, and with it all workers."""
        return self._process.poll() is not None

    def fork(self, index: int, core: int) -> socket.socket | None:
        """Ask for worker `index` on `core`; this end of its socket, or None if nobody takes the order now."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            try:
                socket.send_fds(self._orders, [NURSERY_MESSAGE.pack(index, core)], [theirs.fileno()])
            except OSError:
                ours.close()
                return None
        return ours

    def end(self, index: int) -> None:
        """Ask for the end of worker `index`; nothing happens if nobody takes the order now, or it is gone."""
        with suppress(OSError):
            self._orders.send(NURSERY_MESSAGE.pack(END_WORKER, index))

    def close(self) -> None:
        """End the nursery and all workers; they are gone when this returns. A second call does nothing."""
        self._orders.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _start(orders_fd: int) -> subprocess.Popen[bytes]:
    # What this process can import, it can: -P keeps the folder that a user stands in out of it.
    path = os.pathsep.join(filter(None, sys.path))
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "caraserve_cli.coldstart.nursery", str(orders_fd)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment,
        pass_fds=(orders_fd,),
        start_new_session=True,
    )
