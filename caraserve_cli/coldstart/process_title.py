"""The command line that `ps` and /proc show for this process."""

from __future__ import annotations

import ctypes
from pathlib import Path

# Fields of /proc/PID/stat, counted from the one behind the command's name, which may itself hold spaces: the
# addresses between which the command line lies (man 5 proc: fields 48 and 49; the first here is field 3).
_ARG_START, _ARG_END = 48 - 3, 49 - 3


def set_process_title(title: str) -> None:
    """Show `title`, cut to the length of the command line that it replaces."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
    room = end - start - 1
    if room > 0:
        ctypes.memmove(start, title.encode()[:room].ljust(room + 1, b"\0"), room + 1)
