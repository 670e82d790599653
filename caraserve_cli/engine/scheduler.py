"""Decides what each step computes: continuous batching, chunked prefill, admission, preemption.

`plan()` takes blocks and adapter slots and returns a `StepPlan`; `commit()` books what the plan computes once
it is under way, so that the next one can be planned before its tokens are known.
Knows no tensors, no clock but the one given, and no policy beyond first come, first served; the simulator
runs the very same class.

Why nobody starves: running sequences are served in the order of their admission, and the last one admitted
is the first preempted, so the oldest always goes on; waiting ones are admitted in the order of arrival. Only
a sequence whose adapter does not fit beside the adapters in use may be passed, by sequences that need no
load and prolong the use of the adapters whose room it waits for by a bounded time at most (`adapter_drain`),
and one whose adapter is being read from disk or copied to the device, by anyone, until it is there, or whom
CPU workers are to assist, until those before it have left them room in a step.

A waiting sequence holds its adapter from when its copying begins, if it has to wait for all of it.
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable

from caraserve_cli.coldstart.policy import Decision
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, ColdStart, Sequence, SequenceStatus
from caraserve_cli.engine.adapter_drain import AdapterDrain, AdapterUse
from caraserve_cli.engine.batch_limit import BatchLimit
from caraserve_cli.engine.block_pool import BlockPool
from caraserve_cli.engine.cold_starts import ColdStarts
from caraserve_cli.engine.holdings import Holdings
from caraserve_cli.engine.plan_draft import PlanDraft
from caraserve_cli.engine.plan_waits import WaitFor
from caraserve_cli.engine.residency import AdapterResidency
from caraserve_cli.step_plan import ScheduledChunk, StepPlan

# Waiting sequences whose adapters are read from disk before their turn comes. Chosen, not measured.
LOOKAHEAD_SEQUENCES = 64


class Scheduler:
    """Waiting and running sequences, and the blocks and adapter slots they hold."""

    def __init__(self, config: EngineConfig, clock_ms: Callable[[], float], num_layers: int = 1) -> None:
        self._config = config
        self._clock_ms = clock_ms
        self._batch_limit = BatchLimit(config.max_batch_tokens)
        self.blocks = BlockPool(config.num_kv_blocks)
        self.residency = AdapterResidency(config.adapter_memory_bytes, config.max_resident_adapters)
        self._holdings = Holdings(self.blocks, self.residency, config.kv_block_tokens)
        self.cold_starts = ColdStarts(self.residency, num_layers, clock_ms)
        self._drain = AdapterDrain(self.residency, self._adapter_uses)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.ending: set[Sequence] = set()
        self._adapters: dict[str, AdapterInfo] = {}
        self._num_added = 0
        self._order: dict[Sequence, int] = {}

    @property
    def has_work(self) -> bool:
        return bool(self._order)

    @property
    def num_unfinished(self) -> int:
        """Sequences that wait, run, or have their last token under way."""
        return len(self._order)

    @property
    def is_tight(self) -> bool:
        """Whether the next plan may have to preempt: each running sequence may want one more block."""
        return self.blocks.num_free < len(self.running)

    def add(self, sequence: Sequence, adapter: AdapterInfo | None) -> None:
        """Queue a sequence that the caller has checked to fit the cache and the adapter pool alone."""
        if adapter is not None:
            self._adapters[adapter.name] = adapter
        self._order[sequence] = self._num_added
        self._num_added += 1
        self.waiting.append(sequence)
        self.residency.note_waiting(sequence.request.adapter, +1)

    def plan(self) -> StepPlan:
        """Choose the chunks of the next step. Empty when nothing can be computed before a token under way is
        known, or an adapter has arrived."""
        self.cold_starts.begin_plan()
        draft = PlanDraft(self._batch_limit.num_tokens, self.cold_starts.supply.most_assisted_tokens)
        self._plan_running(draft)
        if not draft.num_preempted:
            self._plan_waiting(draft)
        return draft.freeze()

    def wanted_adapters(self) -> list[str]:
        """Adapters of the next sequences that wait, in the order in which they will be needed, without those
        that have a place on the device."""
        ahead = (sequence.request.adapter for sequence in self.waiting[:LOOKAHEAD_SEQUENCES])
        names = dict.fromkeys(name for name in ahead if name is not None)
        return [name for name in names if not self.residency.is_resident(name)]

    def halve_batch(self) -> bool:
        """Plan smaller steps for a while, for one did not fit the device; False if they cannot be smaller."""
        return self._batch_limit.halve()

    def commit(self, plan: StepPlan) -> None:
        """Book the tokens of a plan that is under way: later steps are computed after it, and may build on
        its keys and values. So a sequence whose last token it computes gives back all that it holds: what is
        computed or copied there later comes after it."""
        self._batch_limit.note_step()
        for chunk in plan.chunks:
            sequence = chunk.sequence
            sequence.num_computed_tokens = chunk.start + chunk.num_tokens
            sequence.num_pending_tokens += chunk.yields_token
            sequence.is_unchecked = chunk.cpu_layers > 0
            if sequence.is_unchecked:
                continue  # it holds all until it is known that it need not be computed again
            self._holdings.remember(sequence)
            if sequence.is_ending:
                self.running.remove(sequence)
                self._holdings.take_back(sequence)
                sequence.status = SequenceStatus.ENDING
                self.ending.add(sequence)

    def check(self, chunk: ScheduledChunk, *, in_time: bool) -> None:
        """Whether what CPU workers were to compute of a chunk under way came in time; if not, it is computed
        again when the adapter has arrived, and its token is void."""
        sequence = chunk.sequence
        if not sequence.is_unchecked:
            return
        sequence.is_unchecked = False
        if in_time:
            self._holdings.remember(sequence)
            return
        assert sequence.request.adapter is not None
        # A preempted one starts anew anyway.
        sequence.num_computed_tokens = min(chunk.start, sequence.num_computed_tokens)
        sequence.num_pending_tokens -= chunk.yields_token
        sequence.num_failed_assists += 1
        sequence.cold_start = ColdStart.ON_DEMAND
        self.cold_starts.note_failed_assist(sequence.request.adapter)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out and give back all that it holds."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self._holdings.take_back(sequence)
        elif sequence.status is SequenceStatus.ENDING:
            self.ending.remove(sequence)
        else:
            self.waiting.remove(sequence)
            self.residency.note_waiting(sequence.request.adapter, -1)
            self._holdings.take_back(sequence)
        sequence.status = SequenceStatus.FINISHED
        del self._order[sequence]

    def users_of(self, adapter: str) -> list[Sequence]:
        """Every sequence that runs or waits and asked for `adapter`."""
        return [s for s in (*self.running, *self.waiting) if s.request.adapter == adapter]

    # Running sequences

    def _plan_running(self, draft: PlanDraft) -> None:
        index = 0
        while index < len(self.running) and draft.budget_tokens:
            sequence = self.running[index]
            if not self.cold_starts.may_compute(sequence):
                self.cold_starts.waits.note(sequence, WaitFor.COPIES)
                index += 1
                continue
            num_tokens = self._chunk_tokens(sequence, draft)
            if not num_tokens:  # CPU workers have enough for one step
                index += 1
                continue
            if not self._extend(sequence, num_tokens, draft):
                return
            self._schedule(sequence, num_tokens, draft)
            index += 1

    def _extend(self, sequence: Sequence, num_tokens: int, draft: PlanDraft) -> bool:
        """Give `sequence` the blocks for its chunk, preempting the youngest; False if it was itself."""
        num_missing = self._holdings.num_missing_blocks(sequence, num_tokens)
        while num_missing > self.blocks.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            draft.num_preempted += 1
            if victim is sequence:
                return False
        self._holdings.give_blocks(sequence, num_tokens)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue, at its place by arrival; its tokens stay, their cache is computed again."""
        self.running.remove(sequence)
        self._holdings.take_back(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        sequence.timings.preempted_at_ms = self._clock_ms()
        insort(self.waiting, sequence, key=self._order.__getitem__)
        self.residency.note_waiting(sequence.request.adapter, +1)

    # Waiting sequences

    def _plan_waiting(self, draft: PlanDraft) -> None:
        self._drain.begin_plan()
        for sequence in list(self.waiting):
            if not draft.budget_tokens or len(self.running) >= self._config.max_running:
                return
            if sequence.is_unchecked or not self._has_adapter_room(sequence):
                continue
            decision = self._decide(sequence, draft)
            if decision is None or self._waits_for_copies(sequence, decision, draft):
                continue
            if not draft.most_tokens(decision.cpu_layers):
                continue
            if not self._admit(sequence, decision, draft):
                return
        self._drain.end_plan()

    def _has_adapter_room(self, sequence: Sequence) -> bool:
        """Whether its adapter can be used now, and nobody before it waits for the room."""
        adapter = sequence.request.adapter
        if adapter is None or sequence.adapter_slot is not None:
            return True
        if self._drain.is_blocked:
            if self.residency.is_resident(adapter):
                return self._drain.may_pass(adapter, self._num_steps_left(sequence))
        elif self.residency.can_acquire(self._adapters[adapter]):
            return True
        self._drain.block(self._adapters[adapter])
        self.cold_starts.waits.note(sequence, WaitFor.ROOM)
        return False

    def _decide(self, sequence: Sequence, draft: PlanDraft) -> Decision | None:
        """How its adapter is brought to the device; None while that is still being read from disk."""
        adapter = sequence.request.adapter
        if adapter is None:
            return Decision(ColdStart.NONE)
        if not self.cold_starts.is_cold(adapter):
            return Decision(ColdStart.RESIDENT)
        if not self.residency.is_resident(adapter) and not self.cold_starts.supply.is_ready(adapter):
            self.cold_starts.waits.note(sequence, WaitFor.DISK)
            return None
        return self.cold_starts.decide(
            sequence,
            self._adapters[adapter],
            count_cached_tokens=self._holdings.num_cached_tokens,
            batch_tokens=draft.num_tokens,
            num_decoding=len(draft.chunks),
        )

    def _waits_for_copies(self, sequence: Sequence, decision: Decision, draft: PlanDraft) -> bool:
        """Whether it waits until its adapter, or enough of it, is on the device; the copying then begins with
        this plan at the latest."""
        if decision.how is ColdStart.ON_DEMAND or decision.hold_ms:
            self._acquire_adapter(sequence, decision, draft)
        if sequence.adapter_slot is None or self.cold_starts.may_compute(sequence):
            return False
        self.cold_starts.waits.note(sequence, WaitFor.COPIES)
        return True

    def _adapter_uses(self) -> dict[str, AdapterUse]:
        uses: defaultdict[str, AdapterUse] = defaultdict(AdapterUse)
        for sequence in (*self.running, *self.waiting):
            if sequence.request.adapter is not None:
                use = uses[sequence.request.adapter]
                use.num_waiting += sequence.status is SequenceStatus.WAITING
                use.num_steps = max(use.num_steps, self._num_steps_left(sequence))
        return uses

    def _num_steps_left(self, sequence: Sequence) -> int:
        """How many steps compute a part of it, at most, if each computes as much of it as it may."""
        num_known = sequence.num_tokens - sequence.num_computed_tokens
        num_chunks = -(-num_known // self._config.prefill_chunk_tokens)
        num_outputs = sequence.num_tokens - sequence.num_prompt_tokens
        return num_chunks + sequence.max_output_tokens - num_outputs - 1  # the last chunk yields a token

    def _admit(self, sequence: Sequence, decision: Decision, draft: PlanDraft) -> bool:
        """Start a waiting sequence if the cache has room for all of its tokens; False if it has not."""
        if not self._holdings.give_prefix(sequence):
            return False
        if sequence.timings.first_scheduled_ms is None:
            sequence.timings.first_scheduled_ms = self._clock_ms()
            sequence.num_cached_tokens = sequence.num_computed_tokens
        elif (since_ms := sequence.timings.preempted_at_ms) is not None:
            sequence.timings.preempted_ms += self._clock_ms() - since_ms
            sequence.timings.preempted_at_ms = None
        draft.num_cached_tokens += sequence.num_computed_tokens
        self._acquire_adapter(sequence, decision, draft)
        self.waiting.remove(sequence)
        self.residency.note_waiting(sequence.request.adapter, -1)
        self.running.append(sequence)
        sequence.status = SequenceStatus.RUNNING
        num_tokens = self._chunk_tokens(sequence, draft)
        self._holdings.give_blocks(sequence, num_tokens)
        self._schedule(sequence, num_tokens, draft)
        return True

    def _acquire_adapter(self, sequence: Sequence, decision: Decision, draft: PlanDraft) -> None:
        adapter = sequence.request.adapter
        if adapter is None or sequence.adapter_slot is not None:
            return
        self._drain.note_user(adapter, self._num_steps_left(sequence))
        acquired = self.residency.acquire(
            self._adapters[adapter], decision.how, decision.cpu_layers, is_held=decision.hold_ms > 0
        )
        sequence.adapter_slot = acquired.adapter_slot
        if acquired.needs_load:
            draft.pool_ops += acquired.pool_ops
            self.cold_starts.note_load(self._adapters[adapter], acquired.adapter_slot, decision)
        if sequence.num_preemptions == 0:
            sequence.cold_start = decision.how
            sequence.timings.load = self.cold_starts.load_of(adapter)

    # Chunks

    def _chunk_tokens(self, sequence: Sequence, draft: PlanDraft) -> int:
        num_left = sequence.num_tokens - sequence.num_computed_tokens
        most_tokens = draft.most_tokens(self.cold_starts.cpu_layers(sequence))
        return min(num_left, most_tokens, self._config.prefill_chunk_tokens)

    def _schedule(self, sequence: Sequence, num_tokens: int, draft: PlanDraft) -> None:
        start = sequence.num_computed_tokens
        yields_token = start + num_tokens == sequence.num_tokens
        cpu_layers = self.cold_starts.cpu_layers(sequence)
        draft.add(ScheduledChunk(sequence, start, num_tokens, yields_token, cpu_layers))

    def check_integrity(self) -> None:
        """For tests, after every step.

        Raises:
            AssertionError: blocks, pins or queues do not add up.
        """
        self.blocks.check_integrity(s.block_table for s in self.running)
        self.residency.check_integrity(s.request.adapter for s in self.waiting)
        assert not any(s.block_table for s in self.waiting)
        assert set(self._order) == {*self.waiting, *self.running, *self.ending}
        assert all(not s.block_table and s.adapter_slot is None for s in self.ending)
        assert len(self.running) <= self._config.max_running
        orders = [self._order[s] for s in self.waiting]
        assert orders == sorted(orders), "the queue is out of order"
