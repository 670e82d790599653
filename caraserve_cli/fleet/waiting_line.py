"""Requests that no replica has yet, in the order in which they were submitted. Knows no replicas."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from caraserve_cli.core import AdapterInfo, Request
from caraserve_cli.placement.request_facts import RequestFacts


@dataclass(frozen=True, slots=True)
class Waiting:
    """A request, what placement knows of it, and its place in the order."""

    request: Request
    facts: RequestFacts
    number: int


class WaitingLine:
    """A queue. Who comes back takes the place that he had."""

    def __init__(self) -> None:
        self._line: deque[Waiting] = deque()
        self._num_joined = 0

    def __len__(self) -> int:
        return len(self._line)

    @property
    def first(self) -> Waiting:
        """Who joined before all others that wait; there must be one."""
        return self._line[0]

    def join(self, request: Request, adapter: AdapterInfo | None, output_tokens: int) -> None:
        """A request is the last one; `output_tokens` are the most of its answer."""
        facts = RequestFacts.of(request, adapter, output_tokens)
        self._line.append(Waiting(request, facts, self._num_joined))
        self._num_joined += 1

    def come_back(self, returning: Iterable[Waiting]) -> None:
        """Those who left wait again, before all who joined after them."""
        ordered = sorted(returning, key=_number)
        if not ordered:
            return
        self._line = deque(heapq.merge(ordered, self._line, key=_number))

    def leave(self) -> Waiting:
        """Take out the first one; there must be one."""
        return self._line.popleft()


def _number(waiting: Waiting) -> int:
    return waiting.number
