"""How often each of any number of keys was seen: in about 16 bytes a key for the first, then on disk.

Keeps a 64-bit hash of a key, never the key: two of a million keys share a hash with a probability of
3e-8. Knows nothing of requests.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from hashlib import blake2b

from caraserve_cli.requests.id_file import IdFile

_MAX_LOAD = 0.85
# With the load above, a key takes 9 bytes / 0.85 = 10.6 (just before growing) to 15.9 bytes (just after).
_GROWTH = 1.5
_INITIAL_SLOTS = 1024
# 4.5 MiB; the last size of the growth below it holds 381,138 keys. Beyond, adding a key took 10 us instead of
# 3.3 (a million keys, a machine of 2 cores, both busy), where all of a row takes 60 to 90.
_MOST_SLOTS = 2**19
_MAX_COUNT = 255


class IdTable:
    """An open-addressing hash table from keys to counts, probed linearly, until it is large.

    Args:
        most_slots: of the table in memory.

    Raises:
        InputError: from any method but `len`: the disk is full or failed.
    """

    def __init__(self, most_slots: int = _MOST_SLOTS) -> None:
        self._num_keys = 0
        self._most_slots = most_slots
        self._file: IdFile | None = None
        self._allocate(_INITIAL_SLOTS)
        # Counts that do not fit a byte: at most one key in 255 additions has one.
        self._large_counts: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of distinct keys."""
        return self._num_keys

    def __contains__(self, key: bytes) -> bool:
        key_hash = _hash(key)
        if self._file is not None:
            return key_hash in self._file
        return self._hashes[self._find_slot(key_hash)] != 0

    def add(self, key: bytes) -> int:
        """Count `key` once more; returns how often it was added before."""
        key_hash = _hash(key)
        if self._file is not None:
            return self._add_to_file(self._file, key_hash)
        slot = self._find_slot(key_hash)
        if self._hashes[slot] == 0:
            if self._num_keys >= self._max_keys:
                self._grow()
                if self._file is not None:
                    return self._add_to_file(self._file, key_hash)
                slot = self._find_slot(key_hash)
            self._hashes[slot] = key_hash
            self._counts[slot] = 1
            self._num_keys += 1
            return 0
        count = self._counts[slot]
        if count < _MAX_COUNT:
            self._counts[slot] = count + 1
            return count
        count = self._large_counts.get(key_hash, _MAX_COUNT)
        self._large_counts[key_hash] = count + 1
        return count

    def _add_to_file(self, file: IdFile, key_hash: int) -> int:
        times_before = file.add(key_hash)
        self._num_keys += times_before == 0
        return times_before

    def _allocate(self, num_slots: int) -> None:
        self._hashes = array("Q", [0]) * num_slots  # 0 marks a free slot
        self._counts = array("B", [0]) * num_slots
        self._max_keys = int(num_slots * _MAX_LOAD)

    def _find_slot(self, key_hash: int) -> int:
        """The slot that holds `key_hash`, or the free one where it belongs."""
        hashes = self._hashes
        num_slots = len(hashes)
        slot = key_hash * num_slots >> 64  # ascending with the hash: growth and the file take them in order
        while (found := hashes[slot]) and found != key_hash:
            slot += 1
            if slot == num_slots:
                slot = 0
        return slot

    def _grow(self) -> None:
        num_slots = int(len(self._hashes) * _GROWTH)
        if num_slots > self._most_slots:
            self._file = IdFile(self._pairs())
            self._allocate(0)
            self._large_counts.clear()
            return
        old_hashes, old_counts = self._hashes, self._counts
        self._allocate(num_slots)
        hashes, counts, num_slots = self._hashes, self._counts, len(self._hashes)
        for key_hash, count in zip(old_hashes, old_counts, strict=True):
            if key_hash:
                slot = key_hash * num_slots >> 64
                while hashes[slot]:  # the keys are distinct: only a free slot is looked for
                    slot = slot + 1 if slot + 1 < num_slots else 0
                hashes[slot] = key_hash
                counts[slot] = count

    def _pairs(self) -> Iterator[tuple[int, int]]:
        """Hashes and their counts."""
        for key_hash, count in zip(self._hashes, self._counts, strict=True):
            if key_hash:
                yield key_hash, self._large_counts.get(key_hash, count)


def _hash(key: bytes) -> int:
    """64 bits, never 0."""
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "little") or 1
