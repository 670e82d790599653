"""Which unfinished requests have missed their end-to-end deadline, as far as the clock says it for certain.

A bound on the first token or on the gaps between tokens drops nobody: the answer may still be of use. Neither
does a prediction: it may be wrong.
"""

from __future__ import annotations

import heapq
import math

from caraserve_cli.core import Failure, Sequence, SequenceStatus
from caraserve_cli.errors import RowErrorCode


class MissedDeadlines:
    """The deadlines of sequences, the next one first; those of finished ones are forgotten when they come."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Sequence]] = []
        self._num_added = 0

    def add(self, sequence: Sequence) -> None:
        """A sequence was queued."""
        due_ms = _due_ms(sequence)
        if due_ms is not None:
            heapq.heappush(self._heap, (due_ms, self._num_added, sequence))
            self._num_added += 1

    @property
    def next_due_ms(self) -> float:
        """When the next of them is due that may still be unfinished; infinite without any."""
        while self._heap and self._heap[0][2].status is SequenceStatus.FINISHED:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def take(self, now_ms: float) -> list[Sequence]:
        """Those that are unfinished and late by now; each once. One whose step may still be writing to its
        blocks, beside the steps that would be given them, stays until that has been checked."""
        missed: list[Sequence] = []
        unchecked: list[tuple[float, int, Sequence]] = []
        while self._heap and self._heap[0][0] < now_ms:
            late = heapq.heappop(self._heap)
            if late[2].is_unchecked:
                unchecked.append(late)
            elif late[2].status is not SequenceStatus.FINISHED:
                missed.append(late[2])
        for late in unchecked:
            heapq.heappush(self._heap, late)
        return missed


def is_late(sequence: Sequence, now_ms: float) -> bool:
    """Whether a token that comes now comes after the deadline."""
    due_ms = _due_ms(sequence)
    return due_ms is not None and now_ms > due_ms


def describe_miss(sequence: Sequence, now_ms: float) -> Failure:
    """What becomes of a late sequence: by how much it was late when it was taken out, and where it was. Ask
    while it is unfinished."""
    due_ms = _due_ms(sequence)
    assert due_ms is not None
    num_tokens = sequence.num_output_tokens
    state = "waiting" if sequence.status is SequenceStatus.WAITING else "running"
    where = f"{state}, after {num_tokens} of up to {sequence.max_output_tokens} tokens"
    if not num_tokens:
        where = f"{state}, before its first token"
    return Failure(
        sequence.request,
        RowErrorCode.DEADLINE_EXCEEDED,
        f"deadline_ms {sequence.request.bounds.deadline_ms:g} was exceeded by {now_ms - due_ms:.1f} ms when "
        f"it was dropped: {where}; give it more time, or leave out --on-missed-deadline drop",
    )


def _due_ms(sequence: Sequence) -> float | None:
    deadline_ms = sequence.request.bounds.deadline_ms
    return None if deadline_ms is None else sequence.timings.arrival_ms + deadline_ms
