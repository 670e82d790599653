"""A trace of invocations per minute, in the format of the Azure Functions trace of 2019.

A CSV file: one row a function, columns with its hashed ids (`HashOwner,HashApp,HashFunction,Trigger`), then
`1`, `2`, …, `1440`: how often it was invoked in each minute of the day. Other id columns and another number
of minutes do as well. The format: https://github.com/Azure/AzurePublicDataset, AzureFunctionsDataset2019.md.

Knows no clock and no requests: `arrival_process` makes times of the counts.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

from caraserve_cli.errors import OptionError

_LARGEST_COUNT = 2**32 - 1
_SECONDS_PER_MINUTE = 60


@dataclass(slots=True)
class TraceMinute:
    """The functions that were invoked in one minute, and how often each was.

    A function is a number: its popularity in the whole trace, from 0 for the one with most invocations; of
    equals the one with the lesser ids comes first.
    """

    functions: array[int] = field(default_factory=lambda: array("I"))
    counts: array[int] = field(default_factory=lambda: array("I"))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalTrace:
    """What a trace's file says.

    Attributes:
        minutes: in order, those without invocations too; at least one invocation is in them.
        digest: of the file's bytes.
    """

    minutes: Sequence[TraceMinute]
    digest: str

    @property
    def num_invocations(self) -> int:
        return sum(sum(minute.counts) for minute in self.minutes)

    @property
    def rate_per_s(self) -> float:
        """The mean over the whole trace, its empty minutes included."""
        return self.num_invocations / (len(self.minutes) * _SECONDS_PER_MINUTE)

    @classmethod
    def read(cls, path: Path) -> ArrivalTrace:
        """Read a file. Memory grows with the counts in it that are not 0.

        Raises:
            OptionError: it cannot be read, is not of this format, or has no invocation; the message names
                the option `--arrival-trace` and the line.
        """
        digest = blake2b(digest_size=8)
        try:
            with path.open("rb") as file:
                minutes = _read_minutes(file, digest, path)
        except OSError as error:
            raise OptionError(f"--arrival-trace: '{path}' cannot be read: {error.strerror}") from None
        if not any(minute.counts for minute in minutes):
            raise OptionError(f"--arrival-trace: '{path}' has no invocations")
        return cls(minutes=minutes, digest=digest.hexdigest())


def _read_minutes(file: BinaryIO, digest: blake2b, path: Path) -> list[TraceMinute]:
    rows = csv.reader(_lines(file, digest))
    minutes: list[TraceMinute] = []
    # Of each function, for its popularity: the number of its invocations, and its ids.
    totals: list[tuple[int, list[str]]] = []
    try:
        header = next(rows, [])
        num_ids = _num_ids(header)
        minutes += [TraceMinute() for _ in header[num_ids:]]
        for cells in filter(None, rows):
            if len(cells) != len(header):
                raise ValueError(f"it has {len(cells)} columns, and the header {len(header)}")
            total = _add_function(minutes, len(totals), cells[num_ids:])
            totals.append((total, cells[:num_ids]))
    except (ValueError, csv.Error) as error:
        raise OptionError(f"--arrival-trace: '{path}' line {max(rows.line_num, 1)}: {error}") from None
    ranks = array("I", [0]) * len(totals)
    by_popularity = sorted(range(len(totals)), key=lambda row: (-totals[row][0], totals[row][1]))
    for rank, row in enumerate(by_popularity):
        ranks[row] = rank
    for minute in minutes:
        minute.functions = array("I", map(ranks.__getitem__, minute.functions))
    return minutes


def _lines(file: BinaryIO, digest: blake2b) -> Iterator[str]:
    for line in file:
        digest.update(line)
        yield line.decode("utf-8", "replace")  # ids are compared, never shown


def _num_ids(header: Sequence[str]) -> int:
    """How many columns stand before the minutes.

    Raises:
        ValueError: the header is not that of a trace.
    """
    num_ids = header.index("1") if "1" in header else 0
    if not num_ids or header[num_ids:] != [str(number + 1) for number in range(len(header) - num_ids)]:
        raise ValueError(
            "it is not the header of a trace, which has columns of ids and then the minutes 1, 2, … as in "
            "HashOwner,HashApp,HashFunction,Trigger,1,2,…,1440"
        )
    return num_ids


def _add_function(minutes: Sequence[TraceMinute], row: int, cells: Sequence[str]) -> int:
    """Take in the counts of the function in a row; the sum of them.

    Raises:
        ValueError: one of them is no count.
    """
    total = 0
    for index, cell in enumerate(cells):
        if cell == "0":  # as nearly all are
            continue
        count = int(cell) if cell.isdecimal() else -1
        if not 0 <= count <= _LARGEST_COUNT:
            must_be = f"a count from 0 to {_LARGEST_COUNT}"
            raise ValueError(f"minute {index + 1} must be {must_be}, got '{cell[:60]}'")
        if count:
            minutes[index].functions.append(row)
            minutes[index].counts.append(count)
            total += count
    return total
