"""IdTable against a dict, and its promise of memory."""

import subprocess
import sys
import tracemalloc
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.requests.id_table import IdTable
from tests.cli.command import user_environment


@settings(max_examples=50, deadline=None)
@given(st.lists(st.binary(max_size=2), max_size=3000))
def test_counts_like_a_dict(keys: list[bytes]) -> None:
    table, counts = IdTable(), Counter[bytes]()
    for key in keys:
        assert table.add(key) == counts[key]
        counts[key] += 1
        assert key in table
    assert len(table) == len(counts)
    assert b"not among them" not in table


def test_counts_survive_growth() -> None:
    table = IdTable()
    for _ in range(3):
        for number in range(5000):
            table.add(b"%d" % number)
    assert len(table) == 5000
    assert all(table.add(b"%d" % number) == 3 for number in range(5000))
    assert not any(b"%d" % number in table for number in range(5000, 9000))


def test_counts_pass_a_byte_and_survive_growth() -> None:
    table = IdTable()
    assert [table.add(b"often") for _ in range(600)] == list(range(600))
    for number in range(5000):
        table.add(b"%d" % number)
    assert table.add(b"often") == 600


def test_empty_key_is_a_key() -> None:
    table = IdTable()
    assert b"" not in table
    assert [table.add(b""), table.add(b"")] == [0, 1]


def test_a_key_takes_at_most_sixteen_bytes() -> None:
    num_keys = 40_000
    tracemalloc.start()
    try:
        table = IdTable()
        for number in range(num_keys):
            table.add(b"request-%d" % number)
        num_bytes, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == num_keys
    assert num_bytes <= 16 * num_keys + 4096
    assert peak_bytes <= 28 * num_keys  # old and new slots while it grows


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3000), max_size=6000))
def test_counts_like_a_dict_on_disk(numbers: list[int]) -> None:
    table, counts = IdTable(most_slots=1024), Counter[bytes]()
    for key in [b"%d" % number for number in (*range(1500), *numbers)]:
        assert table.add(key) == counts[key]
        counts[key] += 1
        assert key in table
    assert len(table) == len(counts)
    assert b"not among them" not in table


def test_counts_pass_a_byte_and_survive_the_move_to_disk() -> None:
    table = IdTable(most_slots=1024)
    assert [table.add(b"often") for _ in range(600)] == list(range(600))
    for number in range(5000):
        table.add(b"%d" % number)
    assert [table.add(b"often"), table.add(b"often")] == [600, 601]
    assert [table.add(b""), table.add(b"")] == [0, 1]


def test_memory_ends_where_the_disk_begins() -> None:
    """SQLite's own pages are 4 MiB at the most, which tracemalloc does not see."""
    tracemalloc.start()
    try:
        table = IdTable(most_slots=1024)
        for number in range(40_000):
            table.add(b"request-%d" % number)
        num_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) == 40_000
    assert num_bytes < 16 * 1024


def test_a_full_disk_is_told_in_a_line() -> None:
    """In a process that may write no file beyond 64 KiB, which SQLite meets as it does a full disk."""
    fill = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "from caraserve_cli.errors import InputError\n"
        "from caraserve_cli.requests.id_table import IdTable\n"
        "table = IdTable(most_slots=1024)\n"
        "try:\n"
        "    for number in range(1_000_000): table.add(b'%d' % number)\n"
        "except InputError as error: print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", fill], env=user_environment(), capture_output=True, text=True, check=True
    ).stdout
    assert told.count("\n") == 1
    assert "hashes of ids cannot be kept in '" in told
    assert "TMPDIR" in told
