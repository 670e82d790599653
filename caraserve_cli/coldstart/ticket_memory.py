"""Tickets: what CPU workers are to compute, in memory that they share with who writes them.

A step's tables can be a megabyte (64 adapters, 128 ops, 128 bytes each), more than a socket takes; here they
are written once for all workers, who are then told the number of the place. A ticket stays in its place until
all its workers have ended it. Knows no processes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from caraserve_kernels.host_exchange import MAX_WORKERS
from caraserve_kernels.lora_layout import TABLE_FIELDS

# A worker still has one while the device computes the step before, and one more may be queued; a fourth is
# there for those that are being given up.
NUM_PLACES = 4
# Int64s at the start of a place: first number, ops, rows of the step, mask of workers, adapters.
_HEADER_FIELDS = 5
_INT64_BYTES = 8


@dataclass(frozen=True, slots=True, eq=False)
class AssistRows:
    """Rows of one adapter in a step's exchange.

    Attributes:
        first_row: of x.
        num_rows: from there on.
        table: int64 [layers, groups, TABLE_FIELDS], offsets in elements of the arena.
    """

    first_row: int
    num_rows: int
    table: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ticket:
    """A step's ops: the i-th has number `first_number` + i. `workers` is the bit mask of those that compute
    each of them together."""

    first_number: int
    num_ops: int
    workers: int

    @property
    def last_number(self) -> int:
        return self.first_number + self.num_ops - 1


@dataclass(frozen=True, slots=True, eq=False)
class WorkerTicket:
    """A ticket as a worker reads it.

    Attributes:
        ticket: numbers and workers.
        num_rows: of the step, of which each worker has a part (`own_parts`).
        before: worker -> number of the op that it must have done before anyone writes a result of this
            ticket: a worker that is late with an earlier one would write over it.
        ops: (layer, group) of each op.
        segments: (first row, rows) of each adapter.
        entries: int64 [adapters, ops, TABLE_FIELDS], a view of the shared memory.
    """

    ticket: Ticket
    num_rows: int
    before: Mapping[int, int]
    ops: Sequence[tuple[int, int]]
    segments: Sequence[tuple[int, int]]
    entries: NDArray[np.int64]


class TicketMemory:
    """One mapping of the places for tickets.

    Args:
        fd: of the memory, which this object closes with `close`.
        max_ops: of one ticket.
        max_segments: adapters of one ticket at most.
    """

    def __init__(self, fd: int, max_ops: int, max_segments: int) -> None:
        self.fd, self.max_ops, self.max_segments = fd, max_ops, max_segments
        num_int64s = _place_int64s(max_ops, max_segments)
        memory = mmap.mmap(fd, NUM_PLACES * num_int64s * _INT64_BYTES)
        self._places = np.frombuffer(memory, np.int64).reshape(NUM_PLACES, num_int64s)

    @staticmethod
    def create(max_ops: int, max_segments: int) -> TicketMemory:
        """Make the memory; only what tickets have touched of it takes room.

        Raises:
            OSError: there is no memory for it.
        """
        fd = os.memfd_create("caraserve-tickets")
        try:
            os.ftruncate(fd, NUM_PLACES * _place_int64s(max_ops, max_segments) * _INT64_BYTES)
            return TicketMemory(fd, max_ops, max_segments)
        except BaseException:
            os.close(fd)
            raise

    def write(
        self,
        place: int,
        ticket: Ticket,
        num_rows: int,
        before: Mapping[int, int],
        ops: Sequence[tuple[int, int]],
        rows: Sequence[AssistRows],
    ) -> None:
        """Put a ticket into a place that no worker reads any more.

        Raises:
            ValueError: it has more ops, or adapters, than a place has room for.
        """
        if len(ops) > self.max_ops or len(rows) > self.max_segments:
            raise ValueError(
                f"a ticket of {len(ops)} ops for {len(rows)} adapters; there is room for {self.max_ops} and "
                f"{self.max_segments}"
            )
        words = self._places[place]
        mask = ticket.workers - (ticket.workers >> 63 << 64)
        words[:_HEADER_FIELDS] = (ticket.first_number, ticket.num_ops, num_rows, mask, len(rows))
        end = _HEADER_FIELDS + MAX_WORKERS
        words[_HEADER_FIELDS:end] = 0
        for worker, number in before.items():
            words[_HEADER_FIELDS + worker] = number
        op_array = np.array(ops, dtype=np.int64).reshape(len(ops), 2)
        segments = np.array([(row.first_row, row.num_rows) for row in rows], dtype=np.int64)
        for part in (op_array, segments):
            words[end : end + part.size] = part.ravel()
            end += part.size
        entries = words[end : end + len(rows) * len(ops) * TABLE_FIELDS]
        for row, target in zip(rows, entries.reshape(len(rows), len(ops), TABLE_FIELDS), strict=True):
            target[:] = row.table[op_array[:, 0], op_array[:, 1]]

    def read(self, place: int) -> WorkerTicket:
        """The ticket in a place."""
        words = self._places[place]
        first_number, num_ops, num_rows, mask, num_segments = words[:_HEADER_FIELDS].tolist()
        end = _HEADER_FIELDS + MAX_WORKERS
        numbers = words[_HEADER_FIELDS:end].tolist()
        ops = words[end : end + 2 * num_ops].reshape(num_ops, 2).tolist()
        end += 2 * num_ops
        segments = words[end : end + 2 * num_segments].reshape(num_segments, 2).tolist()
        end += 2 * num_segments
        entries = words[end : end + num_segments * num_ops * TABLE_FIELDS]
        return WorkerTicket(
            Ticket(first_number, num_ops, mask % (1 << 64)),
            num_rows,
            {worker: number for worker, number in enumerate(numbers) if number},
            [(layer, group) for layer, group in ops],
            [(first_row, rows) for first_row, rows in segments],
            entries.reshape(num_segments, num_ops, TABLE_FIELDS),
        )

    def close(self) -> None:
        """Give the memory up; a second call does nothing."""
        if self.fd >= 0:
            self._places = np.empty((0, 0), np.int64)
            os.close(self.fd)
            self.fd = -1


def _place_int64s(max_ops: int, max_segments: int) -> int:
    entries = max_segments * max_ops * TABLE_FIELDS
    return _HEADER_FIELDS + MAX_WORKERS + 2 * max_ops + 2 * max_segments + entries
