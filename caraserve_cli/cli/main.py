"""`caraserve`: from the first moment on, who stops it gets one line and an exit status.

Imports nothing but the standard library before it listens.
"""

from __future__ import annotations

import sys

from caraserve_cli.cli.stopping import listen, listen_no_more
from caraserve_cli.errors import ExitStatus


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
