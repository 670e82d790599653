"""How long this process has been running, which a user waits for from the first moment on."""

from __future__ import annotations

import os
import time
from pathlib import Path

# Of /proc/self/stat, counted from what follows the command's name, which may hold spaces: the field
# `starttime`, in ticks since the machine was started.
_START_FIELD = 19


def process_age_s() -> float:
    """Seconds since the process was started, what the interpreter took to start included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[_START_FIELD]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
