"""A folder that goes when the process that made it ends, SIGKILL included, and with it whoever uses it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from pathlib import Path

from caraserve_cli.fleet import warden

# Ray puts sockets below it, whose path has 107 characters at most, of which Ray's need 80.
_MOST_PARENT_CHARS = 12
_CLEAN_UP_S = 10.0


class GuardedFolder:
    """An empty folder on this machine; see `warden`.

    Args:
        prefix: of its name.
    """

    def __init__(self, prefix: str) -> None:
        parent = tempfile.gettempdir()
        short = parent if len(parent) <= _MOST_PARENT_CHARS else "/tmp"
        self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=short))
        command = [sys.executable, "-I", "-S", str(Path(warden.__file__)), str(self.path), str(os.getpid())]
        # It forks: both pipes are those of the one that stays, of which the second ends with it.
        self._warden: subprocess.Popen[bytes] | None = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._warden.wait()

    def close(self) -> None:
        """Kill who uses it, but not this process, and remove it. A second call does nothing."""
        if self._warden is None:
            return
        guard, self._warden = self._warden, None
        assert guard.stdin is not None
        assert guard.stdout is not None
        guard.stdin.close()
        select.select([guard.stdout], [], [], _CLEAN_UP_S)
        guard.stdout.close()
