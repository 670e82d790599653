"""How long the command has been running, which a user waits for from the first moment on.

`cli.main` imports this before all else. When the process was started is no answer: a shell may have been in
it until then (`pip install … && caraserve run` in `bash -c`).
"""

from __future__ import annotations

import time

_BEGUN_S = time.monotonic()


def command_age_s() -> float:
    """Seconds since this module was imported."""
    return time.monotonic() - _BEGUN_S
