"""Files in the format of the Azure Functions trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


def write_trace(path: Path, functions: Mapping[str, Sequence[int]]) -> Path:
    """A trace with these counts per minute by function."""
    num_minutes = max(map(len, functions.values()))
    lines = [["HashOwner", "HashApp", "HashFunction", "Trigger", *map(str, range(1, num_minutes + 1))]]
    lines += [["owner", "app", name, "http", *map(str, counts)] for name, counts in functions.items()]
    path.write_text("".join(",".join(line) + "\n" for line in lines))
    return path
