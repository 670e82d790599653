"""One replica on virtual time: the engine's scheduler, cold-start policy, KV blocks and residency, with steps
that take as long as the models of its machine say.

Steps follow one another: each is planned when the one before it has ended, or where steps are planned ahead,
as a GPU's runner does, when the one before that has (`steps_ahead`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from caraserve_cli.coldstart.policy import ColdStartPolicy
from caraserve_cli.core import AdapterInfo, Sequence, SequenceStatus
from caraserve_cli.engine.by_slack import make_scheduling_policy
from caraserve_cli.engine.missed_deadlines import MissedDeadlines, describe_miss, is_late
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.engine.scheduling import FirstComeFirstServed
from caraserve_cli.perf.step_predictor import StepPredictor
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.simulation.host_shelf import HostShelf
from caraserve_cli.simulation.new_sequence import new_sequence
from caraserve_cli.simulation.replica_reports import ReplicaReports
from caraserve_cli.simulation.run_under_way import RunUnderWay
from caraserve_cli.simulation.simulated_depot import SimulatedDepot
from caraserve_cli.simulation.simulated_request import Answered, SimulatedRequest
from caraserve_cli.simulation.step_times import StepTimes
from caraserve_cli.simulation.steps_ahead import StepsAhead
from caraserve_cli.simulation.virtual_clock import VirtualClock
from caraserve_cli.step_plan import AdapterEviction, AdapterLoad, ScheduledChunk, StepPlan

# More than any answer has.
ANY_STEPS = 2**31


class SimulatedReplica:
    """Answers requests on virtual time.

    Args:
        index: in the fleet.
        facts: its machine, models and sizes.
        policy: decides how adapters come to its device.
        clock: of the fleet.
        reports: told of what happens.
        scheduling: what `--scheduling` calls the policy by which it takes those that wait.
        most_equal_steps: that are passed over in one event; 0 plans every step. The times are the same.

    Attributes:
        next_event_ms: when `advance` is to be called; infinite while there is nothing to do.
    """

    def __init__(
        self,
        index: int,
        facts: ReplicaFacts,
        policy: ColdStartPolicy,
        clock: VirtualClock,
        reports: ReplicaReports,
        scheduling: str = FirstComeFirstServed.name,
        most_equal_steps: int = ANY_STEPS,
    ) -> None:
        self._index, self._clock, self._reports = index, clock, reports
        self._max_running = facts.config.max_running
        self._adapters: dict[str, AdapterInfo] = {}  # of what is here
        self._shelf: HostShelf | None = None
        if facts.disk is not None:
            self._shelf = HostShelf(facts.disk, facts.host_adapter_bytes, self._adapters, clock)
        self._depot = SimulatedDepot(
            facts.profile.link,
            clock,
            facts.num_cpu_workers if facts.profile.cpu_lora else 0,
            facts.config.prefill_chunk_tokens,
            self._shelf,
        )
        predictor = StepPredictor(facts.step_model)
        self._step_times = StepTimes(facts, self._depot, predictor)
        serving = make_scheduling_policy(scheduling, facts.config, predictor)
        self.scheduler = Scheduler(facts.config, clock, facts.profile.shape.num_layers, serving)
        self.scheduler.cold_starts.supply = self._depot
        self.scheduler.cold_starts.policy = policy
        self.scheduler.cold_starts.lane.max_tokens = facts.beside_tokens
        self._adapter_in: dict[int, str] = {}  # slot → name
        self._requests: dict[Sequence, SimulatedRequest] = {}
        self._sequences: dict[str, Sequence] = {}
        self._missed_deadlines = MissedDeadlines() if facts.config.drop_missed else None
        self._steps = StepsAhead(facts.steps_in_flight, facts.profile.between_steps_ms)
        self._run = RunUnderWay(
            self.scheduler, self._step_times, self._steps, self._requests, self._adapters, most_equal_steps
        )
        self.num_steps = 0
        self.next_event_ms = math.inf

    def submit(self, request: SimulatedRequest) -> None:
        """A request arrives here now."""
        sequence = new_sequence(request)
        self._requests[sequence] = request
        self._sequences[request.facts.id] = sequence
        if request.adapter is not None:
            self._adapters[request.adapter.name] = request.adapter
        self.scheduler.add(sequence, request.adapter)
        if self._missed_deadlines is not None:
            self._missed_deadlines.add(sequence)
        if self._run:
            # Where the batch is full, nothing changes until somebody ends, or is dropped.
            if len(self.scheduler.running) < self._max_running or self._missed_deadlines is not None:
                self._run.cut(self._clock.now_ms)
                if not self._steps:
                    self.next_event_ms = self._run.event_ms
        elif not self._steps:
            self.next_event_ms = self._clock.now_ms

    def take_back(self, request_id: str) -> bool:
        """Give up a request that is in no step and has no first token; False if it has come further."""
        sequence = self._sequences[request_id]
        if sequence.status is not SequenceStatus.WAITING or sequence.timings.first_token_ms is not None:
            return False
        self.scheduler.finish(sequence)
        self._forget(sequence)
        return True

    def advance(self) -> None:
        """What was under way ends now, at `next_event_ms`, and what is planned next begins."""
        if self._steps and self._steps.end_ms <= self._clock.now_ms:
            self._end_step(self._steps.take())
        if self._run:
            self.next_event_ms = self._run.event_ms
            if self.next_event_ms > self._clock.now_ms:
                return
            self._end_run()
        while self._steps.may_plan and self._plan():
            pass
        if self._steps and not self._run:
            self.next_event_ms = self._steps.end_ms

    # What begins

    def _plan(self) -> bool:
        """Plan what comes next; False if that is not followed by another plan now."""
        self.next_event_ms = math.inf
        self._end_beside()
        if not self.scheduler.has_work or (self._steps and self.scheduler.is_tight):
            # Steps under way may end sequences and free what would be taken from others.
            self._steps.wait_for_all()
            return False
        for sequence in self._missed_deadlines.take(self._clock.now_ms) if self._missed_deadlines else ():
            self._drop(sequence)
        due_ms = None if self._missed_deadlines is None else self._missed_deadlines.next_due_ms
        if self._run.begin(self._clock.now_ms, due_ms):
            self.next_event_ms = self._steps.end_ms if self._steps else self._run.event_ms
            return False
        if self._shelf is not None:
            self._shelf.prefetch(self.scheduler.wanted_adapters())
        plan, now_ms = self.scheduler.plan(), self._clock.now_ms
        loads = self._move_adapters(plan)
        if plan.beside:
            self._begin_beside(plan)
        if plan.chunks:
            self._begin_step(plan)
        elif self._steps:
            self._steps.wait_for_all()
        else:
            # Everybody waits for an adapter, or is computed beside.
            beside_ms = math.inf if self._steps.beside is None else self._steps.beside.end_ms
            hold_end_ms = self.scheduler.cold_starts.next_hold_end_ms()
            arrival_ms = min(self._depot.next_arrival_ms(), self._depot.next_read_ms())
            self.next_event_ms = min(arrival_ms, hold_end_ms, beside_ms)
        for load in loads:
            coming = self._depot.coming(load.adapter_slot)
            ready_ms = now_ms if coming is None else coming.ready_ms
            self._reports.on_load(self._index, load.adapter, ready_ms, self._depot.free_ms)
        return bool(plan.chunks)

    def _begin_step(self, plan: StepPlan) -> None:
        begin_ms = self._steps.free_ms(self._clock.now_ms)
        step_ms = self._step_times.step_ms(plan, self._adapters, begin_ms)
        self.scheduler.commit(plan)
        self._steps.add(plan, begin_ms, step_ms)
        self.num_steps += 1
        if any(chunk.cpu_layers for chunk in plan.chunks):
            self._reports.on_assist(self._index, begin_ms + step_ms)

    def _begin_beside(self, plan: StepPlan) -> None:
        begin_ms = self._steps.free_ms(self._clock.now_ms)
        is_shared = bool(plan.chunks or self._steps)
        beside = self._step_times.beside(plan.beside, self._adapters, begin_ms, is_shared=is_shared)
        self._steps.beside = beside
        self.scheduler.commit_beside(plan.beside)
        if any(chunk.cpu_layers for chunk in plan.beside):
            self._reports.on_assist(self._index, beside.end_ms)

    def _move_adapters(self, plan: StepPlan) -> list[AdapterLoad]:
        loads: list[AdapterLoad] = []
        for op in plan.pool_ops:
            match op:
                case AdapterEviction():
                    self._depot.evict(op.adapter_slot)
                    self._reports.on_eviction(self._index, self._adapter_in.pop(op.adapter_slot))
                case AdapterLoad():
                    self._adapter_in[op.adapter_slot] = op.adapter
                    loads.append(op)
        if loads:
            self._depot.load((load, self._adapters[load.adapter]) for load in loads)
        return loads

    # What ends

    def _end_run(self) -> None:
        run = self._run.take()
        self._end_answers(self._run.book(run))
        self.num_steps += run.num_steps
        self._run.plan_last(run, self._clock.now_ms)

    def _end_step(self, plan: StepPlan) -> None:
        self._end_chunks(plan.chunks)

    def _end_beside(self) -> None:
        if chunks := self._steps.take_beside(self._clock.now_ms):
            self.scheduler.cold_starts.lane.leave()
            for chunk in chunks:
                self.scheduler.check(chunk, in_time=True)
            self._end_chunks(chunks)

    def _end_chunks(self, chunks: Iterable[ScheduledChunk]) -> None:
        now_ms = self._clock.now_ms
        ended: list[Sequence] = []
        for chunk in chunks:
            sequence = chunk.sequence
            if sequence.status is SequenceStatus.FINISHED:
                continue  # a step planned before its end was known
            if chunk.cpu_layers:
                self.scheduler.check(chunk, in_time=True)
            if self._missed_deadlines is not None and is_late(sequence, now_ms):
                if chunk.yields_token:
                    self._drop(sequence)
                continue
            if chunk.yields_token:
                sequence.num_pending_tokens -= 1
                sequence.token_ids.append(0)
                if sequence.timings.first_token_ms is None:
                    sequence.timings.first_token_ms = now_ms
                    self._reports.on_first_token(self._requests[sequence])
                ended.append(sequence)
        self._end_answers(ended)

    def _end_answers(self, sequences: list[Sequence]) -> None:
        """Those of them that are complete end now."""
        requests = self._requests
        for sequence in sequences:
            request = requests[sequence]
            if len(sequence.token_ids) - sequence.num_prompt_tokens < request.output_tokens:
                continue
            self.scheduler.finish(sequence)
            first_scheduled_ms = sequence.timings.first_scheduled_ms
            first_token_ms = sequence.timings.first_token_ms
            assert first_scheduled_ms is not None
            assert first_token_ms is not None
            self._forget(sequence)
            self._reports.on_answer(
                Answered(
                    request,
                    self._index,
                    first_scheduled_ms,
                    first_token_ms,
                    self._clock.now_ms,
                    sequence.cold_start,
                    sequence.num_preemptions,
                )
            )

    def _drop(self, sequence: Sequence) -> None:
        """Its deadline has passed."""
        failure, request = describe_miss(sequence, self._clock.now_ms), self._requests[sequence]
        self.scheduler.finish(sequence)
        self._forget(sequence)
        self._reports.on_failure(request, failure)

    def _forget(self, sequence: Sequence) -> None:
        del self._requests[sequence]
        del self._sequences[sequence.request.id]
