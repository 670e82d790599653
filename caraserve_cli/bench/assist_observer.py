"""A process that watches words in shared memory: when which of them changed.

It looks without pause, which a thread of the launching process could not do without keeping the interpreter
from launching. A program of its own, started by its path; knows nothing of the package.

    assist_observer.py FD FIRST_BYTE NUM_WORDS

`FD` is of the memory, whose int32s from `FIRST_BYTE` on are watched. It says `ready`, watches until stdin is
closed, and prints the changes as JSON: [perf_counter_ns, index of the word, value].
"""

from __future__ import annotations

import json
import mmap
import sys
import threading
import time
from collections.abc import Callable

_WORD_BYTES = 4


def watch(
    fd: int, first_byte: int, num_words: int, is_over: Callable[[], bool]
) -> list[tuple[int, int, int]]:
    """The changes until it is over; what was there at first, apart from zeros, is a change of the first look.

    Raises:
        OSError: the memory cannot be mapped.
    """
    end_byte = first_byte + num_words * _WORD_BYTES
    looks: list[tuple[int, bytes]] = []
    last = bytes(num_words * _WORD_BYTES)
    with mmap.mmap(fd, end_byte, access=mmap.ACCESS_READ) as memory:
        was_over = False
        # What it was told before the end is seen: one more look afterwards.
        while not was_over:
            was_over = is_over()
            now = memory[first_byte:end_byte]
            if now != last:
                looks.append((time.perf_counter_ns(), now))
                last = now
    return _changes(looks, num_words)


def _changes(looks: list[tuple[int, bytes]], num_words: int) -> list[tuple[int, int, int]]:
    changes: list[tuple[int, int, int]] = []
    before = [0] * num_words
    for at_ns, content in looks:
        words = memoryview(content).cast("i").tolist()
        changes += [(at_ns, index, word) for index, word in enumerate(words) if word != before[index]]
        before = words
    return changes


def _main() -> None:
    fd, first_byte, num_words = map(int, sys.argv[1:])
    over = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        over.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    json.dump(watch(fd, first_byte, num_words, over.is_set), sys.stdout)


if __name__ == "__main__":
    _main()
