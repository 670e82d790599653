"""How often each of any number of hashes was seen, on disk: what `IdTable` goes on with when it is large.

SQLite's temporary database, which has no name and goes away with the process, however that ends. It lies in
the folder that TMPDIR names, else in /var/tmp. Knows nothing of keys and requests.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable
from typing import NoReturn

from caraserve_cli.errors import InputError

# Of SQLite's pages in memory. Chosen, not measured.
_CACHE_KIB = 4096
_ADD = "INSERT INTO seen VALUES (?, 1) ON CONFLICT DO UPDATE SET times = times + 1 RETURNING times"


class IdFile:
    """A table from hashes of 64 bits to counts. Threads take turns, as their caller sees to.

    Args:
        counts: what it begins with.

    Raises:
        InputError: the disk is full or failed; so does every method.
    """

    def __init__(self, counts: Iterable[tuple[int, int]]) -> None:
        try:
            # In a transaction that never ends: what is not kept needs no journal and no syncing.
            self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._database.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            self._database.execute("PRAGMA journal_mode = OFF")
            self._database.execute("CREATE TABLE seen (hash INTEGER PRIMARY KEY, times INTEGER NOT NULL)")
            self._database.execute("BEGIN")
            pairs = ((_signed(each), count) for each, count in counts)
            self._database.executemany("INSERT INTO seen VALUES (?, ?)", pairs)
        except sqlite3.Error as error:
            _fail(error)

    def __contains__(self, key_hash: int) -> bool:
        try:
            found = self._database.execute("SELECT 1 FROM seen WHERE hash = ?", (_signed(key_hash),))
            return found.fetchone() is not None
        except sqlite3.Error as error:
            _fail(error)

    def add(self, key_hash: int) -> int:
        """Count a hash once more; returns how often it was added before."""
        try:
            times: int = self._database.execute(_ADD, (_signed(key_hash),)).fetchone()[0]
        except sqlite3.Error as error:
            _fail(error)
        return times - 1


def _signed(key_hash: int) -> int:
    """SQLite's integers have a sign."""
    return key_hash - 2**63


def _fail(error: sqlite3.Error) -> NoReturn:
    raise InputError(
        f"hashes of ids cannot be kept in '{_folder()}': {error}; free some space there or name another "
        "folder by the variable TMPDIR, then start again, a run with --resume"
    ) from error


def _folder() -> str:
    """Where SQLite has put the file."""
    candidates = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp")
    usable = (each for each in candidates if each and os.access(each, os.W_OK | os.X_OK))
    return next(usable, None) or tempfile.gettempdir()
