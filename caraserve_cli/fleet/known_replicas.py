"""What a fleet's driver knows of its replicas: what they are, what they have to do, what would fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from caraserve_cli.core import Request
from caraserve_cli.fleet.deaths import Deaths
from caraserve_cli.fleet.fleet_facts import fleet_facts, has_measured_models
from caraserve_cli.fleet.messages import ReplicaDescription, ReplicaNews
from caraserve_cli.fleet.outbox import Placed
from caraserve_cli.fleet.waiting_line import Waiting
from caraserve_cli.perf.batch_load import BoolArray
from caraserve_cli.placement.loads import ReplicaLoads


class KnownReplicas:
    """Replicas by index.

    Args:
        names: of each.
        descriptions: of each, as it started.
        deaths: says who is given up.
        clock_ms: milliseconds since the start of the run.
        moves_requests: whether the placement moves what was placed and not sent.

    Attributes:
        loads: of all of them; another object after some `replace`.
        descriptions: of those that are there now.
        has_measured_models: whether `loads` go by measured models of time.
    """

    def __init__(
        self,
        names: Sequence[str],
        descriptions: Sequence[ReplicaDescription],
        deaths: Deaths,
        clock_ms: Callable[[], float],
        *,
        moves_requests: bool,
    ) -> None:
        self._names, self._deaths, self._clock_ms = names, deaths, clock_ms
        self._moves_requests = moves_requests
        self.descriptions = list(descriptions)
        self.has_measured_models = False
        self.loads = self._make_loads()

    def __len__(self) -> int:
        return len(self.descriptions)

    def most_output_tokens(self, request: Request) -> int:
        """Of its answer, on the replica with the longest context."""
        context_tokens = max(description.config.max_context_tokens for description in self.descriptions)
        return min(request.sampling.max_tokens, context_tokens - len(request.prompt_token_ids))

    def fit_alone(self, waiting: Waiting) -> BoolArray:
        """Which replicas would hold a request, of those that are there or will be; shape [N]."""
        fits = self.loads.fits_alone(waiting.facts)
        fits[list(self._deaths.given_up)] = False
        return fits

    def roomiest(self) -> int | None:
        """The replica that tells why it cannot answer what fits nowhere; None while all are full."""
        loads = self.loads
        has_room = loads.is_open & (loads.num_requests < loads.capacities.max_requests)
        candidates = has_room.nonzero()[0]
        if not len(candidates):
            return None
        return int(candidates[loads.capacities.kv_tokens[candidates].argmax()])

    def take_state(self, replica: int, news: ReplicaNews) -> None:
        """Book what a replica tells of itself: its adapters, its link, and its steps against their model."""
        loads = self.loads
        for adapter in news.adapters_came:
            loads.places.note_resident(adapter, replica)
        for adapter in news.adapters_left:
            loads.places.note_gone(adapter, replica)
        if news.link_free_ms is not None:
            loads.note_link_busy(replica, news.link_free_ms)
        if news.corrections is not None and self.has_measured_models:
            loads.note_corrections(replica, news.corrections)

    def replace(self, replica: int, description: ReplicaDescription, placed: Iterable[Placed]) -> None:
        """Another one is in the place of a dead one, perhaps of another size; `placed` are the requests of
        all others, which stay where they are."""
        before, self.descriptions[replica] = self.descriptions[replica], description
        if (before.config, before.profile) == (description.config, description.profile):
            self.loads.open(replica)
        else:
            self._remake_loads(replica, placed)

    def _make_loads(self) -> ReplicaLoads:
        self.has_measured_models = has_measured_models(self.descriptions)
        facts = fleet_facts(self._names, self.descriptions, moves_requests=self._moves_requests)
        return ReplicaLoads(facts, self._clock_ms)

    def _remake_loads(self, open_again: int, placed: Iterable[Placed]) -> None:
        before, self.loads = self.loads, self._make_loads()
        for each in placed:
            self.loads.place(each.waiting.facts, each.replica)
            if each.has_started:
                self.loads.start(each.waiting.request.id)
        # Of the new one nothing is noted: the dead one's was forgotten with it.
        self.loads.places.note_same_unusable(before.places)
        for replica in range(len(self)):
            if not before.is_open[replica] and replica != open_again:
                self.loads.shut(replica)
