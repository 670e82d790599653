"""A process that outlives another for as long as it takes to clean up after it: a folder, and all who use it.

Ray's main processes die with the driver, SIGKILL included, but two of its helpers look for that only now and
then. When this process's standard input is closed, as it is when whoever has the other end is gone, whoever
still has a file open below the folder is killed, and the folder removed.

`python warden.py FOLDER PID`, PID being of the process to spare; a script of its own, so that it starts in
milliseconds. It is nobody's child: Ray kills those of an actor with the actor.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

_MOST_ROUNDS = 100
_ROUND_S = 0.05
# So many times in a row nobody must be found: a process may just be starting another.
_EMPTY_ROUNDS = 3


def find_users(folder: str, spared: int) -> Iterator[int]:
    """Processes that have a file open below a folder, but for this one and one more."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and int(name) not in (os.getpid(), spared) and _uses(name, folder + os.sep):
            yield int(name)


def _uses(pid: str, prefix: str) -> bool:
    with suppress(OSError):  # it is another user's, or has ended
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{fd}").startswith(prefix):
                    return True
    return False


def clean_up(folder: str, spared: int) -> None:
    """Kill all users of a folder, and remove it."""
    num_empty = 0
    for _ in range(_MOST_ROUNDS):
        users = list(find_users(folder, spared))
        for pid in users:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        num_empty = 0 if users else num_empty + 1
        if num_empty == _EMPTY_ROUNDS:
            break
        time.sleep(_ROUND_S)
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Wait for the end of standard input."""
    folder, spared = sys.argv[1], int(sys.argv[2])
    if os.fork():
        os._exit(0)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    clean_up(folder, spared)


if __name__ == "__main__":
    main()
