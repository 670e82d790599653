"""What tells that an adapter's files are no longer those that were looked at before. Reads none of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from caraserve_cli.adapters.peft_config import CONFIG_NAME
from caraserve_cli.adapters.weight_file import BIN_NAME, SAFETENSORS_NAME

# Why an adapter is refused whose files are others than when it was first seen.
FILES_CHANGED = "its files changed during the run; run again with the new ones"


class FileStamp(NamedTuple):
    """One file's size, time of its last change, and number; a file that is replaced gets another number."""

    num_bytes: int
    changed_ns: int
    inode: int


def stamp_files(folder: Path) -> tuple[FileStamp | None, ...]:
    """Of each file that an adapter may consist of; None for those that are not there."""
    return tuple(_stamp(folder / name) for name in (CONFIG_NAME, SAFETENSORS_NAME, BIN_NAME))


def _stamp(path: Path) -> FileStamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ino)
