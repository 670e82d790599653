"""A fleet on virtual time: the placement policy in front, simulated replicas behind, event after event.

What replicas report reaches the placement at once. Requests that find no replica wait in the order of their
arrival, and none passes another.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count

from caraserve_cli.coldstart.break_even import BreakEven
from caraserve_cli.coldstart.policy import ColdStartPolicy, make_policy
from caraserve_cli.core import Failure
from caraserve_cli.engine.scheduling import FirstComeFirstServed
from caraserve_cli.errors import OptionError
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.migration import Migration, RequestMigration
from caraserve_cli.placement.policy import MigratingPlacement, Placement
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.simulation.replica import ANY_STEPS, SimulatedReplica
from caraserve_cli.simulation.simulated_request import Answered, SimulatedRequest
from caraserve_cli.simulation.virtual_clock import VirtualClock

# How often a placement that moves requests is asked what to move. Chosen, not measured: a dozen decoding
# steps.
REBALANCE_EVERY_MS = 500.0


def _forget_failure(failure: Failure) -> None:
    """For fleets that drop nobody."""


class SimulatedFleet:
    """Replicas, their loads, and one placement.

    Args:
        replicas: with distinct names.
        placement: chooses among them.
        cold_start: what `--cold-start` calls the strategy of all replicas.
        on_answer: told of every answer, in the order in which they end.
        on_failure: told of every request that was dropped, where replicas drop what misses its deadline.
        scheduling: what `--scheduling` calls the policy of all replicas.
        most_equal_steps: as in `SimulatedReplica`.

    Attributes:
        loads: of the replicas, as the placement sees them.
        num_events: so far.

    Raises:
        OptionError: there is no such strategy.
    """

    def __init__(
        self,
        replicas: Sequence[ReplicaFacts],
        placement: Placement,
        cold_start: str,
        on_answer: Callable[[Answered], None],
        scheduling: str = FirstComeFirstServed.name,
        most_equal_steps: int = ANY_STEPS,
        on_failure: Callable[[Failure], None] = _forget_failure,
    ) -> None:
        self._on_failure = on_failure
        self._clock = VirtualClock()
        self._placement, self._on_answer = placement, on_answer
        self.loads = ReplicaLoads(replicas, self._clock)
        policies = _Policies(cold_start)
        self.replicas = [
            SimulatedReplica(
                index, facts, policies.of(facts), self._clock, self, scheduling, most_equal_steps
            )
            for index, facts in enumerate(replicas)
        ]
        self._here: dict[str, SimulatedRequest] = {}  # placed and unanswered
        self._unplaced: deque[SimulatedRequest] = deque()
        self._events: list[tuple[float, int, int]] = []
        self._ticks = count()
        self._rebalance_ms = REBALANCE_EVERY_MS if isinstance(placement, MigratingPlacement) else math.inf
        self._has_room = True  # perhaps: something ended since the placement last said no
        self.num_events = 0

    @property
    def now_ms(self) -> float:
        """The time now."""
        return self._clock.now_ms

    @property
    def num_unanswered(self) -> int:
        """Requests that have arrived and not ended."""
        return len(self._here) + len(self._unplaced)

    def run(self, requests: Iterable[SimulatedRequest]) -> None:
        """Answer all requests.

        Args:
            requests: in the order of their arrival; read one by one.

        Raises:
            OptionError: one of them fits no replica.
        """
        for _ in self.events(requests):
            pass

    def events(self, requests: Iterable[SimulatedRequest]) -> Iterator[None]:
        """`run`, one event at a time: an arrival, or that something ends on a replica."""
        arrivals = iter(requests)
        arrival = next(arrivals, None)
        while True:
            event_ms = self._next_event_ms()
            arrival_ms = math.inf if arrival is None else arrival.facts.arrival_ms
            now_ms = min(event_ms, arrival_ms)
            if now_ms == math.inf:
                break
            self.num_events += 1
            if self._rebalance_ms <= now_ms:
                self._clock.now_ms = self._rebalance_ms
                self._rebalance()
                self._rebalance_ms += REBALANCE_EVERY_MS
            elif arrival is not None and arrival_ms <= event_ms:
                self._clock.now_ms = now_ms
                self._arrive(arrival)
                arrival = next(arrivals, None)
            else:
                self._clock.now_ms = now_ms
                self._advance(heappop(self._events)[2])
            yield
        if self.num_unanswered:
            raise AssertionError(f"{self.num_unanswered} requests are never answered")

    def check_integrity(self) -> None:
        """For tests, after every event.

        Raises:
            AssertionError: what replicas hold, or the loads, do not add up.
        """
        for index, replica in enumerate(self.replicas):
            replica.scheduler.check_integrity()
            assert replica.scheduler.num_unfinished == self.loads.num_requests[index]
        assert int(self.loads.num_requests.sum()) == len(self._here)

    # Events

    def _next_event_ms(self) -> float:
        """Of the replicas; what was put off is dropped."""
        events = self._events
        while events and self.replicas[events[0][2]].next_event_ms != events[0][0]:
            heappop(events)
        return events[0][0] if events else math.inf

    def _schedule(self, replica: int) -> None:
        event_ms = self.replicas[replica].next_event_ms
        if event_ms < math.inf:
            heappush(self._events, (event_ms, next(self._ticks), replica))

    def _advance(self, replica: int) -> None:
        self.replicas[replica].advance()
        self._schedule(replica)
        while self._unplaced and self._has_room:
            self._has_room = self._place(self._unplaced[0])
            if self._has_room:
                self._unplaced.popleft()

    def _arrive(self, request: SimulatedRequest) -> None:
        if not self._unplaced:
            if self._place(request):
                return
            self._has_room = False
        self._check_fits(request)
        self._unplaced.append(request)

    def _place(self, request: SimulatedRequest) -> bool:
        replica = self._placement.choose(request.facts, self.loads)
        if replica is None:
            return False
        self._here[request.facts.id] = request
        self._submit(request, replica)
        return True

    def _submit(self, request: SimulatedRequest, replica: int) -> None:
        self.loads.place(request.facts, replica)
        before_ms = self.replicas[replica].next_event_ms
        self.replicas[replica].submit(request)
        if self.replicas[replica].next_event_ms != before_ms:
            self._schedule(replica)

    def _check_fits(self, request: SimulatedRequest) -> None:
        if not self.loads.fits_alone(request.facts).any():
            raise OptionError(
                f"request '{request.facts.id}' fits no replica: {request.facts.kv_tokens} tokens in the KV "
                f"cache, {request.facts.adapter_bytes} bytes of its adapter"
            )

    def _rebalance(self) -> None:
        assert isinstance(self._placement, MigratingPlacement)
        for migration in self._placement.rebalance(self.loads):
            self._migrate(migration)

    def _migrate(self, migration: Migration) -> None:
        """An adapter moves with the first request that needs it: its copying begins when that is planned."""
        if not isinstance(migration, RequestMigration):
            return
        if not self.replicas[migration.source].take_back(migration.request_id):
            return
        self.loads.end(migration.request_id)
        self._submit(self._here[migration.request_id], migration.target)

    # What replicas report

    def on_first_token(self, request: SimulatedRequest) -> None:
        """See `ReplicaReports`."""
        self.loads.start(request.facts.id)

    def on_answer(self, answered: Answered) -> None:
        """See `ReplicaReports`."""
        request_id = answered.request.facts.id
        self.loads.end(request_id)
        del self._here[request_id]
        self._has_room = True
        self._on_answer(answered)

    def on_failure(self, request: SimulatedRequest, failure: Failure) -> None:
        """See `ReplicaReports`."""
        self.loads.end(request.facts.id)
        del self._here[request.facts.id]
        self._has_room = True
        self._on_failure(failure)

    def on_load(self, replica: int, adapter: str, ready_ms: float, link_free_ms: float) -> None:
        """See `ReplicaReports`."""
        self.loads.places.note_loading(adapter, replica, ready_ms)
        self.loads.note_link_busy(replica, link_free_ms)

    def on_eviction(self, replica: int, adapter: str) -> None:
        """See `ReplicaReports`."""
        self.loads.places.note_gone(adapter, replica)

    def on_assist(self, replica: int, until_ms: float) -> None:
        """See `ReplicaReports`."""
        self.loads.note_cpu_busy(replica, until_ms)


class _Policies:
    """One cold-start policy for each kind of machine and LoRA kernel."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._of: dict[tuple[MachineProfile, int, bool], ColdStartPolicy] = {}

    def of(self, facts: ReplicaFacts) -> ColdStartPolicy:
        kernel = facts.step_model.lora_kernel
        is_padded = kernel is not None and kernel.is_padded
        key = (facts.profile, facts.config.prefill_chunk_tokens, is_padded)
        if key not in self._of:
            break_even = BreakEven(facts.profile, facts.config.prefill_chunk_tokens, is_padded=is_padded)
            self._of[key] = make_policy(self._name, break_even)
        return self._of[key]
