"""Requests that have a replica: which one, and whether they were sent there. Knows no placement."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from caraserve_cli.core import Request
from caraserve_cli.fleet.fleet_facts import most_sent
from caraserve_cli.fleet.messages import ReplicaDescription
from caraserve_cli.fleet.waiting_line import Waiting


@dataclass(slots=True)
class Placed:
    """A request on its way to a replica, or there."""

    waiting: Waiting
    replica: int
    is_sent: bool = False
    has_started: bool = False


class Outbox:
    """Placed requests of all replicas; one is kept here for as long as its replica has as many as it is sent.

    Args:
        descriptions: of the replicas.
    """

    def __init__(self, descriptions: Sequence[ReplicaDescription]) -> None:
        self._most_sent = [most_sent(description) for description in descriptions]
        self._placed: dict[str, Placed] = {}
        self._unsent: list[deque[Request]] = [deque() for _ in descriptions]
        self._num_sent = [0] * len(descriptions)

    def __len__(self) -> int:
        return len(self._placed)

    def __iter__(self) -> Iterator[Placed]:
        """In the order in which they were placed."""
        return iter(self._placed.values())

    def add(self, waiting: Waiting, replica: int) -> None:
        """A request is placed on a replica."""
        self._placed[waiting.request.id] = Placed(waiting, replica)
        self._unsent[replica].append(waiting.request)

    def send(self, submit: Callable[[int, Sequence[Request]], None]) -> None:
        """One list for each replica that takes more."""
        for replica, unsent in enumerate(self._unsent):
            room = self._most_sent[replica] - self._num_sent[replica]
            if unsent and room > 0:
                requests = [unsent.popleft() for _ in range(min(room, len(unsent)))]
                self._num_sent[replica] += len(requests)
                for request in requests:
                    self._placed[request.id].is_sent = True
                submit(replica, requests)

    def find(self, request_id: str, replica: int) -> Placed | None:
        """A request, if it is placed on that replica."""
        placed = self._placed.get(request_id)
        return placed if placed is not None and placed.replica == replica else None

    def end(self, request_id: str) -> None:
        """A request that was sent has left its replica.

        Raises:
            KeyError: it is not placed.
        """
        self._num_sent[self._placed.pop(request_id).replica] -= 1

    def withdraw(self, replica: int, request_ids: Collection[str]) -> list[Waiting]:
        """Take out those of some requests that were not sent to their replica yet."""
        unsent = self._unsent[replica]
        leaving = [request.id for request in unsent if request.id in request_ids]
        self._unsent[replica] = deque(request for request in unsent if request.id not in request_ids)
        return [self._placed.pop(request_id).waiting for request_id in leaving]

    def lose(self, replica: int, request_ids: Iterable[str]) -> list[Placed]:
        """A replica is gone: take out these requests, which are all that it had.

        Raises:
            KeyError: one is not placed.
        """
        self._unsent[replica].clear()
        self._num_sent[replica] = 0
        return [self._placed.pop(request_id) for request_id in request_ids]

    def note_replaced(self, replica: int, description: ReplicaDescription) -> None:
        """Another replica, perhaps of another size, is in the place of one that was lost."""
        self._most_sent[replica] = most_sent(description)
