"""Which replicas try suspects. One that does takes nothing else: the placement has nobody join them.

See `suspects` for who is suspected, and why.
"""

from __future__ import annotations

from collections.abc import Callable

from caraserve_cli.fleet.deaths import Deaths
from caraserve_cli.fleet.suspects import Suspects, Verdict
from caraserve_cli.fleet.waiting_line import Waiting
from caraserve_cli.placement.loads import ReplicaLoads


class Trials:
    """Suspects and the replicas that have some.

    Args:
        deaths: of the replicas; one that is doubted is given one suspect alone: an answer tells that it is
            well.
        may_go: whether a request may be tried on a replica.
        place: places a request on a replica that is open.
    """

    def __init__(
        self,
        deaths: Deaths,
        may_go: Callable[[Waiting, int], bool],
        place: Callable[[Waiting, int], None],
    ) -> None:
        self._deaths, self._may_go, self._place = deaths, may_go, place
        self._suspects = Suspects()
        # Replicas that have suspects, and those that end what they have to be given some.
        self._trying: set[int] = set()
        self._reserved: set[int] = set()

    def __len__(self) -> int:
        """Suspects that wait to be tried."""
        return len(self._suspects)

    def judge(self, lost: Waiting, now_ms: float) -> Verdict:
        """A request was on a replica that died; if it is suspected, it waits here."""
        return self._suspects.note_loss(lost, now_ms)

    def note_end(self, request_id: str) -> None:
        """A request was answered, or failed."""
        self._suspects.note_end(request_id)

    def begin(self, loads: ReplicaLoads, now_ms: float) -> None:
        """Give each replica that has nothing to do a group of suspects."""
        if not self._suspects and not self._reserved:
            return
        if self._suspects.are_impatient(now_ms) and not self._trying | self._reserved and loads.is_open.any():
            candidates = loads.is_open.nonzero()[0]
            self._reserve(int(candidates[loads.num_requests[candidates].argmin()]), loads)
        idle = (loads.num_requests == 0) & loads.is_open
        for replica in {*idle.nonzero()[0].tolist(), *self._reserved}:
            if not self._suspects or not loads.num_requests[replica]:
                self._try_on(replica, loads, now_ms)

    def end_if_idle(self, replica: int, loads: ReplicaLoads) -> None:
        """Open a replica again if it has ended all the suspects that it had."""
        if replica in self._trying and not loads.num_requests[replica]:
            self._trying.remove(replica)
            loads.open(replica)

    def note_death(self, replica: int) -> None:
        """A replica died: it tries nobody any more."""
        self._reserved.discard(replica)
        self._trying.discard(replica)

    def note_replaced(self, replica: int, loads: ReplicaLoads) -> None:
        """Another replica is in the place of a dead one, open; if it is doubted, suspects are its first."""
        if self._suspects and self._deaths.is_doubted(replica):
            self._reserve(replica, loads)

    def _reserve(self, replica: int, loads: ReplicaLoads) -> None:
        loads.shut(replica)
        self._reserved.add(replica)

    def _try_on(self, replica: int, loads: ReplicaLoads, now_ms: float) -> None:
        group = self._suspects.take_group(
            lambda waiting: self._may_go(waiting, replica), now_ms, is_probe=self._deaths.is_doubted(replica)
        )
        self._reserved.discard(replica)
        loads.open(replica)
        for waiting in group:
            self._place(waiting, replica)
        if group:
            loads.shut(replica)
            self._trying.add(replica)
