from __future__ import annotations

from pathlib import Path

from tests.cli.memory_of_long_files import peak_bytes


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Five times the rows; what each of the 8,000 more would keep beyond 2 KiB would be seen."""
    assert peak_bytes(10_000, tmp_path) - peak_bytes(2_000, tmp_path) < 8_000 * 2048
