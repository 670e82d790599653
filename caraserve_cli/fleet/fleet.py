"""Many replicas that answer as one: requests are placed, results come back, the dead are replaced.

The driver's half of a fleet: it books what happens in `ReplicaLoads`, asks the placement, and knows its
replicas through a `Crew` only. Requests wait here, in the order of their arrival, until a replica has room.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from caraserve_cli.core import AdapterInfo, Completion, Failure, Request
from caraserve_cli.errors import InputError, RowError, RowErrorCode
from caraserve_cli.events import EventSink
from caraserve_cli.fleet.account import FleetAccount, ReplicaAccount
from caraserve_cli.fleet.crew import Crew, Died, Replaced, Told
from caraserve_cli.fleet.deaths import MOST_DEATHS, Deaths
from caraserve_cli.fleet.known_replicas import KnownReplicas
from caraserve_cli.fleet.messages import Outcome, ReplicaNews
from caraserve_cli.fleet.outbox import Outbox, Placed
from caraserve_cli.fleet.suspects import GUILTY_LOSSES, Verdict
from caraserve_cli.fleet.trials import Trials
from caraserve_cli.fleet.waiting_line import Waiting, WaitingLine
from caraserve_cli.placement.migration import RequestMigration
from caraserve_cli.placement.policy import MigratingPlacement, Placement

# How often a placement that moves requests is asked for it. Chosen, not measured.
REBALANCE_INTERVAL_MS = 50.0


class Fleet:
    """A `Replica` made of many.

    Args:
        crew: the replicas, ready to answer; closed with the fleet.
        placement: says which of them a request goes to.
        describe_adapter: what planning needs of the adapter of a request, None for the base alone; raises
            RowError.
        clock_ms: milliseconds since the start of the run.
        events: told of the steps of all replicas.
        on_note: told, in a line, what a user should know while it goes on: which replica died, and why.
        clock_error_ms: as in `FleetAccount`.

    Attributes:
        account: what its replicas did so far.
    """

    def __init__(
        self,
        crew: Crew,
        placement: Placement,
        describe_adapter: Callable[[Request], AdapterInfo | None],
        clock_ms: Callable[[], float],
        events: EventSink,
        on_note: Callable[[str], None],
        clock_error_ms: float = 0.0,
    ) -> None:
        self._crew, self._placement = crew, placement
        self._mover = placement if isinstance(placement, MigratingPlacement) else None
        self._describe_adapter, self._clock_ms, self._events = describe_adapter, clock_ms, events
        self._on_note = on_note
        self._deaths = Deaths(len(crew.names))
        self._known = KnownReplicas(
            crew.names, crew.descriptions, self._deaths, clock_ms, moves_requests=self._mover is not None
        )
        self._line = WaitingLine()
        self._failed: list[Outcome] = []
        self._outbox = Outbox(crew.descriptions)
        self._num_running = [0] * len(crew.names)
        self._trials = Trials(self._deaths, self._may_try, self._place)
        self._rebalance_at_ms = 0.0
        self.account = FleetAccount(
            placement=placement.name,
            has_measured_models=self._known.has_measured_models,
            clock_error_ms=clock_error_ms,
            replicas=[
                ReplicaAccount(name=name, device=description.device)
                for name, description in zip(crew.names, crew.descriptions, strict=True)
            ],
        )

    @property
    def num_unfinished(self) -> int:
        return len(self._line) + len(self._outbox) + len(self._failed) + len(self._trials)

    @property
    def num_running(self) -> int:
        return sum(self._num_running)

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests; one that can never be answered comes back as a failure from `poll`."""
        for request in requests:
            try:
                adapter = self._describe_adapter(request)
            except RowError as error:
                self._failed.append(Failure(request, error.code, error.message))
                continue
            self._line.join(request, adapter, self._known.most_output_tokens(request))

    def poll(self, most_wait_s: float = 0.0) -> list[Outcome]:
        """Send what can be placed, wait until something has ended, started or died, and return what ended.

        Raises:
            InputError: no replica is left.
        """
        self._place_waiting()
        outcomes, self._failed = self._failed, []
        if self._outbox or self._line or self._trials:
            for event in self._crew.wait(0.0 if outcomes else most_wait_s):
                match event:
                    case Told():
                        outcomes += self._take_news(event.replica, event.news)
                    case Died():
                        self._bury(event)
                    case Replaced():
                        self._welcome(event)
            self._rebalance()
            self._place_waiting()
            outcomes += self._failed
            self._failed = []
        return outcomes

    def close(self) -> None:
        """End all replicas; nothing is answered any more."""
        self._crew.close()

    # Placing

    def _place_waiting(self) -> None:
        """Place requests in their order until one has to wait. Only one that fits no replica that is open,
        while another is being replaced, is passed by others."""
        passed: list[Waiting] = []
        while self._line and self._known.loads.is_open.any():
            waiting = self._line.first
            replica = self._placement.choose(waiting.facts, self._known.loads)
            if replica is None:
                fits = self._known.fit_alone(waiting)
                if (fits & self._known.loads.is_open).any():
                    break
                if fits.any():
                    passed.append(self._line.leave())
                    continue
                replica = self._known.roomiest()
                if replica is None:
                    break
            self._place(self._line.leave(), replica)
        self._line.come_back(passed)
        self._trials.begin(self._known.loads, self._clock_ms())
        self._outbox.send(self._crew.submit)

    def _may_try(self, waiting: Waiting, replica: int) -> bool:
        fits = self._known.fit_alone(waiting)
        return bool(fits[replica] or not fits.any())

    def _place(self, waiting: Waiting, replica: int) -> None:
        self._known.loads.place(waiting.facts, replica)
        self._outbox.add(waiting, replica)

    def _rebalance(self) -> None:
        """Move what the placement would move, as far as it is still here."""
        if self._mover is None or self._clock_ms() < self._rebalance_at_ms:
            return
        self._rebalance_at_ms = self._clock_ms() + REBALANCE_INTERVAL_MS
        moves: defaultdict[int, dict[str, int]] = defaultdict(dict)
        for migration in self._mover.rebalance(self._known.loads):
            # An adapter comes with the first request that needs it.
            if isinstance(migration, RequestMigration):
                moves[migration.source][migration.request_id] = migration.target
        for source, targets in moves.items():
            for waiting in self._outbox.withdraw(source, targets):
                self._known.loads.end(waiting.request.id)
                self._place(waiting, targets[waiting.request.id])
                self.account.moved += 1

    # What happens on replicas

    def _take_news(self, replica: int, news: ReplicaNews) -> list[Outcome]:
        loads, account = self._known.loads, self.account.replicas[replica]
        self._known.take_state(replica, news)
        for record in news.records:
            self._events.on_step(replace(record, replica=replica) if replica else record)
            account.add_step(record)
        self._num_running[replica] = news.num_running
        for request_id in news.started:
            if placed := self._outbox.find(request_id, replica):
                placed.has_started = True
                loads.start(request_id)
        outcomes = []
        for outcome in news.outcomes:
            request_id = outcome.request.id
            placed = self._outbox.find(request_id, replica)
            if placed is None:
                continue  # of one that was thought to be dead: it is answered elsewhere
            self._outbox.end(request_id)
            loads.end(request_id)
            self._trials.note_end(request_id)
            self._deaths.note_answer(replica)
            if self._goes_elsewhere(placed.waiting, outcome, replica):
                continue
            account.add_outcome(outcome)
            outcomes.append(self._named(outcome, account.name))
        self._trials.end_if_idle(replica, loads)
        return outcomes

    def _goes_elsewhere(self, waiting: Waiting, outcome: Outcome, replica: int) -> bool:
        """Whether an adapter is refused by one replica, which may not be able to read its files, and another
        one is there that has not refused it: the request is placed again."""
        adapter = waiting.facts.adapter
        if isinstance(outcome, Completion) or outcome.code != RowErrorCode.ADAPTER_REFUSED or adapter is None:
            return False
        is_new = replica not in self._known.loads.places.unusable_on(adapter)
        self._known.loads.places.note_unusable(adapter, replica)
        if not self._known.fit_alone(waiting).any():
            return False
        if is_new:
            self._on_note(
                f"{self._crew.names[replica]} refuses adapter '{adapter}', which goes to others: "
                f"{outcome.message}"
            )
        self._line.come_back([waiting])
        self.account.placed_again += 1
        return True

    def _named(self, outcome: Outcome, replica: str) -> Outcome:
        """An answer says whose it is, where there are several."""
        if len(self._known) == 1 or not isinstance(outcome, Completion):
            return outcome
        return replace(outcome, replica=replica)

    def _bury(self, died: Died) -> None:
        """All that a dead replica had is placed again, but for what surely killed it; another takes its
        place, so many times."""
        replica = died.replica
        lost = self._outbox.lose(replica, [facts.id for facts in self._known.loads.close(replica)])
        self._trials.note_death(replica)
        self._come_back(lost, died.reason)
        self._num_running[replica] = 0
        self.account.replicas[replica].add_death(died.reason)
        is_replaced = self._deaths.note_death(replica)
        self._on_note(
            f"{self._crew.names[replica]} died, because {died.reason}; "
            + ("another takes its place" if is_replaced else "it is given up, for it died too often")
        )
        if is_replaced:
            self._crew.replace(replica)
        elif self._deaths.are_all_given_up:
            raise InputError(
                f"no replica is left: each died {MOST_DEATHS + 1} times without an answer, the last one "
                f"because {died.reason}; to go on, remove the cause and give the same command with --resume"
            )

    def _come_back(self, lost: Sequence[Placed], reason: str) -> None:
        """Requests of a replica that died. What it was not sent did it no harm."""
        returning: list[Waiting] = []
        now_ms = self._clock_ms()
        for placed in lost:
            waiting = placed.waiting
            verdict = Verdict.INNOCENT
            if placed.is_sent:
                verdict = self._trials.judge(waiting, now_ms)
            if verdict is Verdict.INNOCENT:
                returning.append(waiting)
            if verdict is not Verdict.GUILTY:
                self.account.placed_again += 1
                continue
            message = (
                f"{GUILTY_LOSSES} replicas died that had it, the last one with nothing else to do, because "
                f"{reason}; try it with one replica to see why"
            )
            self._failed.append(Failure(waiting.request, RowErrorCode.REPLICA_LOST, message))
        self._line.come_back(returning)

    def _welcome(self, replaced: Replaced) -> None:
        replica, description = replaced.replica, replaced.description
        self.account.replaced_replicas += 1
        self._known.replace(replica, description, self._outbox)
        self._outbox.note_replaced(replica, description)
        self._trials.note_replaced(replica, self._known.loads)
