"""What a process imports as it starts, without searches for garbage.

torch and transformers make half a million objects and hardly any garbage; looking through them again and
again took a sixth of the time to import them, and as much again at the end of the process.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def import_pause() -> Iterator[None]:
    """Nothing is collected inside; what is there at the end is never looked through again.

    Where torch is imported already all of this has been, or somebody else's objects would stay: nothing
    happens.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        # Libraries that look for leaks when the interpreter ends would report what is frozen.
        atexit.register(gc.unfreeze)
        gc.enable()
