"""Processes that come and go while a test looks for one of them."""

from __future__ import annotations

import psutil


def is_running(process: psutil.Process, name: str) -> bool:
    """Whether it is there, with this name."""
    try:
        return process.name() == name
    except psutil.Error:
        return False


def descendants(name: str, process: psutil.Process | None = None) -> list[psutil.Process]:
    """Of this process, or of another, all that have this name."""
    family = (process or psutil.Process()).children(recursive=True)
    return [each for each in family if is_running(each, name)]
