"""`caraserve`: from the first moment on, who stops it gets one line and an exit status.

Imports nothing but the standard library before it listens.
"""

from __future__ import annotations

import atexit
import os
import sys

from caraserve_cli.cli import command_age  # noqa: F401  # its clock starts here
from caraserve_cli.cli.stopping import listen, listen_no_more
from caraserve_cli.errors import ExitStatus


def program() -> None:
    """`main` in a process that has nothing else to do: it ends without the interpreter's taking apart of all
    modules, which takes most of a second with torch and transformers."""
    exit_statuses: list[int] = []

    def leave() -> None:
        if exit_statuses and _is_all_written():
            os._exit(exit_statuses[0])

    # The first to be registered is the last to be called; threads have ended by then.
    atexit.register(leave)
    try:
        main()
    except SystemExit as ended:
        if isinstance(ended.code, int):
            exit_statuses.append(ended.code)
        raise


def _is_all_written() -> bool:
    """What cannot be is for the interpreter to tell of, in its way."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except (OSError, ValueError, AttributeError):  # full, closed, never there
        return False
    return True


def main() -> None:
    """Run the command line and end the process."""
    stop = listen()
    exit_status: str | int | None = ExitStatus.INTERRUPTED
    try:
        from caraserve_cli.cli.app import run_command

        exit_status = run_command(stop)
    except BaseException:  # a library that is broken off while it is imported may raise anything
        if not stop.breaks_off:
            raise
    listen_no_more()
    if stop.breaks_off and exit_status == ExitStatus.INTERRUPTED:
        print(f"caraserve: stopped before {stop.goal}", file=sys.stderr)  # noqa: T201
    sys.exit(exit_status)
