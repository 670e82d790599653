"""A process that holds a part of a base and does as the process that started it says, and ends with that.

`python -m caraserve_cli.fleet.follower_process FD`, FD being its end of a socket pair. It says `LOADED`
when it has loaded its part, meets the others when it is told `MEET`, and obeys orders from then on.
Before it ends for an error it says in one line what was wrong.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection

from caraserve_cli.errors import CaraServeError, LostProcessError
from caraserve_cli.import_pause import import_pause


def _end_with(pid: int) -> None:
    """Have this process end when another one does, whatever it waits for then: a collective on a GPU
    would wait for ever."""
    owner = os.pidfd_open(pid)

    def watch() -> None:
        select.select([owner], [], [])
        os._exit(1)

    threading.Thread(target=watch, name="leader's end", daemon=True).start()


def main(fd: int, leader_pid: int) -> int:
    """Be the process; its exit status."""
    # What Ctrl-C means is decided by the process that leads.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with import_pause():
        import torch

        from caraserve_cli.fleet.following import follow
    leader = Connection(fd)
    try:
        _end_with(leader_pid)
        follow(leader)
    except (EOFError, ConnectionError, ProcessLookupError):
        return 0  # nobody leads any more
    except LostProcessError as error:
        # Without a word if another process has ended: it is that one that a user must hear of.
        if isinstance(error.__cause__, RuntimeError):
            return 1
        _tell(leader, str(error))
    except CaraServeError as error:
        _tell(leader, str(error))
    except torch.OutOfMemoryError:
        _tell(
            leader,
            "its GPU's memory does not hold a step; lower --gpu-memory, so that more is left for steps",
        )
    except Exception as error:
        traceback.print_exc()
        _tell(leader, f"{type(error).__name__}: {' '.join(str(error).split())}")
    return 1


def _tell(leader: Connection, reason: str) -> None:
    with suppress(OSError):
        leader.send(reason)


if __name__ == "__main__":
    # Without the interpreter's own ending: it would wait for threads, and for collectives that nobody ends.
    status = main(int(sys.argv[1]), int(sys.argv[2]))
    sys.stderr.flush()
    os._exit(status)
