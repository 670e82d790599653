"""Replicas in the driver's process that answer at once or when they are told to, and die when told to."""

from __future__ import annotations

from collections.abc import Sequence

from caraserve_cli.bench.echo import echo_answer, echo_description, echo_news
from caraserve_cli.core import Bounds, Failure, Request, SamplingParams
from caraserve_cli.errors import RowErrorCode
from caraserve_cli.fleet.crew import CrewEvent, Died, Replaced, Told
from caraserve_cli.fleet.messages import ReplicaDescription, ReplicaNews


def description(*, max_running: int = 4, kv_tokens: int = 3200) -> ReplicaDescription:
    """Of a small one."""
    return echo_description(max_running=max_running, kv_tokens=kv_tokens)


def make_request(
    number: int, adapter: str | None = None, *, prompt_tokens: int = 20, max_tokens: int = 10
) -> Request:
    return Request(
        id=f"r{number}",
        line=number,
        prompt_token_ids=tuple(range(prompt_tokens)),
        adapter=adapter,
        sampling=SamplingParams(max_tokens=max_tokens),
        bounds=Bounds(tpot_slo_ms=50.0),
    )


class MortalCrew:
    """See `Crew`.

    Attributes:
        sent: what each replica was sent, in order, of all that were there in its place.
        holding: what it was sent and has not answered.
        most_answers: that it gives when it is asked for news; None for all.
        replaced_by: what comes in the place of who dies; None for nobody, yet.
        refused: (replica, adapter) of adapters that it cannot read.
        poison: ids of requests that kill whoever has them when it is asked for news.
    """

    def __init__(self, descriptions: Sequence[ReplicaDescription]) -> None:
        self.names = [f"replica-{number}" for number in range(len(descriptions))]
        self.descriptions = list(descriptions)
        self.sent: list[list[Request]] = [[] for _ in descriptions]
        self.holding: list[list[Request]] = [[] for _ in descriptions]
        self.most_answers: int | None = None
        self.replaced_by: ReplicaDescription | None = description()
        self.refused: set[tuple[int, str | None]] = set()
        self.poison: set[str] = set()
        self.num_replacements = 0
        self.num_lost = 0
        self.is_closed = False
        self._events: list[CrewEvent] = []
        self._dead: set[int] = set()
        self._missing: list[int] = []

    def submit(self, replica: int, requests: Sequence[Request]) -> None:
        """See `Crew.submit`."""
        if replica in self._dead:
            self.num_lost += len(requests)
            self.sent[replica] += requests
            return
        self.sent[replica] += requests
        self.holding[replica] += requests

    def wait(self, most_wait_s: float) -> list[CrewEvent]:
        """See `Crew.wait`; waits for nothing."""
        for replica, holding in enumerate(self.holding):
            if any(request.id in self.poison for request in holding):
                self.kill(replica, "of poison")
        events, self._events = self._events, []
        if self.replaced_by is not None:
            self._dead.difference_update(self._missing)
            for replica in self._missing:
                self.descriptions[replica] = self.replaced_by
                events.append(Replaced(replica, self.replaced_by))
            self._missing.clear()
        for replica, holding in enumerate(self.holding):
            if holding and self.most_answers != 0:
                answered = holding[: self.most_answers]
                del holding[: len(answered)]
                news = echo_news(answered)
                news.num_running = len(holding)
                news.outcomes = [
                    Failure(request, RowErrorCode.ADAPTER_REFUSED, f"not readable on {replica}")
                    if (replica, request.adapter) in self.refused
                    else echo_answer(request)
                    for request in answered
                ]
                events.append(Told(replica, news))
        return events

    def tell(self, replica: int, news: ReplicaNews) -> None:
        """A replica has news besides its answers."""
        self._events.append(Told(replica, news))

    def kill(self, replica: int, reason: str = "it was killed") -> None:
        """All that a replica holds is lost."""
        self.num_lost += len(self.holding[replica])
        self.holding[replica].clear()
        self._dead.add(replica)
        self._events.append(Died(replica, reason))

    def replace(self, replica: int) -> None:
        """See `Crew.replace`."""
        self.num_replacements += 1
        self._missing.append(replica)

    def close(self) -> None:
        """See `Crew.close`."""
        self.is_closed = True
