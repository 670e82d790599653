"""What `--verbose` shows: the program's own log, each request in a line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import caraserve_cli


class _Lines(logging.Handler):
    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        """Ids are the user's, and may hold what would begin another line or move a terminal's cursor."""
        text = self.format(record)
        self._show("".join(each if each.isprintable() else repr(each)[1:-1] for each in text))


@contextmanager
def logged(show: Callable[[str], None], wanted: bool) -> Iterator[None]:
    """Inside, what is logged is shown, if that is wanted."""
    logger = logging.getLogger(caraserve_cli.__name__)
    level, lines = logger.level, _Lines(show)
    if wanted:
        logger.addHandler(lines)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
