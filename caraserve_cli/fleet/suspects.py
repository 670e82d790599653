"""Requests that were on replicas that died, more than once: one of them may be what kills whoever has it.

A first death tells nothing, and all that was there is placed again as before. What was there at two deaths is
suspected: it waits until a replica has nothing else to do, and is then tried in a group that nobody else
joins, in a smaller one after each further death, at last alone. Whoever was alone when its replica died is
guilty. So a request that kills replicas costs a few of them and ends as an error, and nobody is blamed for
what a neighbour did. Knows no replicas.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from enum import Enum

from caraserve_cli.fleet.waiting_line import Waiting

# Deaths at which a request must have been there to be suspected.
_SUSPECTED_LOSSES = 2
# How many are tried together, after that many deaths and each further one. Chosen, not measured: of the 320
# that a replica has, one that kills it is found with 5 deaths, and the others are answered in 36 groups.
_GROUP_SIZES = (16, 4, 1)
# So often a request that is guilty was lost.
GUILTY_LOSSES = _SUSPECTED_LOSSES + len(_GROUP_SIZES)
# How long they wait for a replica that has nothing else to do, before one is made to take nothing else.
# Chosen, not measured.
PATIENCE_MS = 10_000.0


class Verdict(Enum):
    """What a loss makes of a request."""

    INNOCENT = 1
    SUSPECTED = 2
    GUILTY = 3


class Suspects:
    """Those that wait to be tried, the least suspected first, and of these the last ones, which a replica
    that died had hardly begun: their answers tell that replicas are well."""

    def __init__(self) -> None:
        self._num_losses: dict[str, int] = {}
        self._waiting: list[tuple[int, int, Waiting]] = []
        self._since_ms = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def note_loss(self, lost: Waiting, now_ms: float) -> Verdict:
        """A request was on a replica that died; if it is suspected, it waits here."""
        request_id = lost.request.id
        num_losses = self._num_losses[request_id] = self._num_losses.get(request_id, 0) + 1
        if num_losses < _SUSPECTED_LOSSES:
            return Verdict.INNOCENT
        if num_losses == GUILTY_LOSSES:
            del self._num_losses[request_id]
            return Verdict.GUILTY
        if not self._waiting:
            self._since_ms = now_ms
        heapq.heappush(self._waiting, (num_losses, -lost.number, lost))
        return Verdict.SUSPECTED

    def note_end(self, request_id: str) -> None:
        """A request was answered, or failed."""
        self._num_losses.pop(request_id, None)

    def are_impatient(self, now_ms: float) -> bool:
        """Whether no group was tried for too long."""
        return bool(self._waiting) and now_ms - self._since_ms >= PATIENCE_MS

    def take_group(
        self, may_go: Callable[[Waiting], bool], now_ms: float, *, is_probe: bool
    ) -> Sequence[Waiting]:
        """The next ones to be tried together, of those that may go where there is room for them now; of a
        probe only one."""
        group: list[Waiting] = []
        others: list[tuple[int, int, Waiting]] = []
        most, of_losses = 1, 0
        while self._waiting and len(group) < most:
            entry = heapq.heappop(self._waiting)
            if may_go(entry[2]) and (not group or entry[0] == of_losses):
                group.append(entry[2])
                of_losses = entry[0]
                most = 1 if is_probe else _GROUP_SIZES[of_losses - _SUSPECTED_LOSSES]
                continue
            others.append(entry)
            if group:
                break
        for entry in others:
            heapq.heappush(self._waiting, entry)
        if group:
            self._since_ms = now_ms
        return group
