"""The other processes of a base that several hold together, as the first one sees them: it starts them,
tells them what to do, notices when one has ended, and ends them.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from caraserve_cli.engine.orders import Order
from caraserve_cli.errors import LostProcessError
from caraserve_cli.fleet.follower_spec import FollowerSpec
from caraserve_cli.fleet.following import LOADED, MEET
from caraserve_cli.model.collective import ProcessGroup
from caraserve_cli.shard import Shard

# How long who waits for them to have loaded sleeps before it looks for other news. Chosen, not measured.
_LOOK_AGAIN_S = 0.1
# After the others have lost one, this is how long it takes at most until it can be seen who that is: the
# kernel closes a process's sockets before it can be waited for. Chosen, not measured.
_DEATH_S = 3.0
# They end when their socket is closed; those that wait for something else then are killed. Chosen, not
# measured.
_END_S = 1.0


@dataclass(slots=True)
class _Process:
    """One of them. `reason` is why it has ended, as far as it could say."""

    tp_index: int
    popen: subprocess.Popen[bytes]
    connection: Connection
    reason: str | None = None


class FollowerProcesses:
    """Implements `engine.orders.Followers`. They end with this process, however it ends.

    Args:
        make_specs: what they are to hold, given the file at which all meet.
        shard: what this process holds.
        device: where.

    Attributes:
        group: of all of them and this one, which have not met yet.

    Raises:
        OSError: a process cannot be started.
    """

    def __init__(
        self, make_specs: Callable[[Path], Sequence[FollowerSpec]], shard: Shard, device: torch.device
    ) -> None:
        self._shard, self._device = shard, device
        # In memory, and gone with the processes: a folder would stay where this one is killed.
        self._meeting_fd = os.memfd_create("caraserve-meeting-place")
        self._processes: list[_Process] = []
        self._is_over = False
        self._watcher: threading.Thread | None = None
        self._num_threads = torch.get_num_threads()
        meeting_place = Path(f"/proc/self/fd/{self._meeting_fd}")
        self.group = ProcessGroup(shard, device, meeting_place)
        try:
            for spec in make_specs(meeting_place):
                self._processes.append(_start(spec, self._meeting_fd))
                torch.set_num_threads(spec.num_threads)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self) -> list[int]:
        return [process.popen.pid for process in self._processes]

    def meet(self) -> None:
        """Wait until all have loaded their parts, and join them in the group.

        Raises:
            LostProcessError: one cannot, and says why.
        """
        for process in self._processes:
            while not process.connection.poll(_LOOK_AGAIN_S):
                self.check()
            with suppress(EOFError, ConnectionError):
                said = process.connection.recv()
                if said == LOADED:
                    continue
                process.reason = str(said)
            raise self.explain(LostProcessError("a process of --tensor-parallel has ended"))
        for process in self._processes:
            self._send(process, MEET)
        try:
            self.group.meet()
        except LostProcessError as error:
            raise self.explain(error) from error
        if self._device.type == "cuda":
            self._watch()

    def tell(self, order: Order) -> None:
        """See `Followers`."""
        for process in self._processes:
            self._send(process, order)

    def check(self) -> None:
        """See `Followers`."""
        for process in self._processes:
            if process.popen.poll() is not None:
                raise LostProcessError(self._describe(process))

    def explain(self, error: Exception) -> Exception:
        """See `Followers`."""
        until_s = time.monotonic() + _DEATH_S
        while not (ended := [process for process in self._processes if process.popen.poll() is not None]):
            if time.monotonic() > until_s:
                return error
            time.sleep(_LOOK_AGAIN_S / 10)
        # Those that only lost another one have no reason of their own, and have not been killed.
        descriptions = {process.tp_index: self._describe(process) for process in ended}
        culprit = min(ended, key=lambda process: (process.reason is None, process.popen.returncode > 0))
        return LostProcessError(descriptions[culprit.tp_index])

    def close(self) -> None:
        """End all of them; they are gone when this returns. A second call does nothing."""
        if self._is_over:
            return
        is_broken = any(process.popen.poll() is not None for process in self._processes)
        self._is_over = True
        if is_broken and self._watcher is not None:
            self._watcher.join()
        self.group.part()
        for process in self._processes:
            process.connection.close()
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.popen.wait(0.0 if is_broken else _END_S)
            process.popen.kill()
            process.popen.wait()
        torch.set_num_threads(self._num_threads)
        os.close(self._meeting_fd)

    def _send(self, process: _Process, message: Order | str) -> None:
        try:
            process.connection.send(message)
        except ConnectionError as error:
            raise self.explain(LostProcessError("a process of --tensor-parallel has ended")) from error

    def _describe(self, process: _Process) -> str:
        """In a line, why a process that is over has ended."""
        with suppress(EOFError, OSError):
            while process.connection.poll():
                if (said := process.connection.recv()) != LOADED:
                    process.reason = str(said)
        which = f"process {process.tp_index} of --tensor-parallel {self._shard.tp_size}"
        if process.reason is not None:
            return f"{which}: {process.reason}"
        status = process.popen.returncode
        how = f"was killed ({signal.Signals(-status).name})" if status < 0 else f"ended with status {status}"
        return f"{which} {how}; what is answered is kept: go on with --resume"

    def _watch(self) -> None:
        """Have an end of one of them break off what waits for it on this GPU, where no error would tell."""
        pidfds = [os.pidfd_open(pid) for pid in self.pids]

        def watch() -> None:
            select.select(pidfds, [], [])
            if not self._is_over:
                self.group.break_off()
            for pidfd in pidfds:
                os.close(pidfd)

        self._watcher = threading.Thread(target=watch, name="followers' end", daemon=True)
        self._watcher.start()


def _start(spec: FollowerSpec, meeting_fd: int) -> _Process:
    """In a session of its own: Ctrl-C at the terminal is not for it. It has the same fd for the file at
    which all meet."""
    ours, theirs = socket.socketpair()
    with theirs:
        # What this process can import, it can: -P keeps the folder that a user stands in out of it.
        path = os.pathsep.join(filter(None, sys.path))
        try:
            popen = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "caraserve_cli.fleet.follower_process"),
                    *(str(theirs.fileno()), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": str(spec.num_threads)},
                pass_fds=(theirs.fileno(), meeting_fd),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
    process = _Process(spec.config.shard.tp_index, popen, Connection(ours.detach()))
    with suppress(ConnectionError):  # it may be gone already, and is not told what it will never do
        process.connection.send(spec)
    return process
