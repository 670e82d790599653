"""Requests that were read and have not arrived yet, by arrival.

Only a window of rows is read ahead, so a row that arrives early may stand unseen behind many that arrive
later: how many were, is counted here. Reads no clock and no input.
"""

from __future__ import annotations

import heapq

from caraserve_cli.core import Request


class Arrivals:
    """A queue by arrival time; of equal times the earlier line comes first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._shut_until_ms = 0.0
        self.num_late = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_ms(self) -> float:
        """When the next one arrives; there must be one."""
        return self._heap[0][0]

    def add(self, request: Request) -> None:
        """Take in a request that was just read."""
        heapq.heappush(self._heap, (request.arrival_ms, request.line, request))
        self.num_late += request.arrival_ms < self._shut_until_ms

    def take_due(self, now_ms: float) -> list[Request]:
        """The requests that have arrived, in that order."""
        due = []
        while self._heap and self._heap[0][0] <= now_ms:
            due.append(heapq.heappop(self._heap)[2])
        return due

    def shut(self, now_ms: float) -> None:
        """Nothing more is read now, though more could run: the window is full of requests yet to arrive.

        A row that is read after this and arrived before it was kept waiting by its place in the file alone.
        """
        self._shut_until_ms = now_ms
