"""Decides what each step computes: continuous batching, chunked prefill, admission, preemption.

`plan()` takes blocks and adapter slots and returns a `StepPlan`; `commit()` books what the plan computes once
it is under way, so that the next one can be planned before its tokens are known.
Knows no tensors and no clock but the one given. In which order those that wait are taken, and how much of
prompts a step may have, a policy says (`scheduling`); the simulator runs the very same classes.

Why nobody starves: running sequences are served in the order of their admission, and the last one admitted
is the first preempted, so the oldest always goes on; each waiting one is at the head of the policy's order in
finite time, and stays there until it is admitted. There, only a sequence whose adapter does not fit beside
the adapters in use may be passed, by sequences that need no load and prolong the use of the adapters whose
room it waits for by a bounded time at most (`adapter_drain`), and one whose adapter is being read from disk
or copied to the device, by anyone, until it is there, or whom CPU workers are to assist, until those before
it have left them room in a step.

A waiting sequence holds its adapter from when its copying begins, if it has to wait for all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from itertools import islice

from caraserve_cli.coldstart.policy import Decision
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import AdapterInfo, Sequence
from caraserve_cli.engine.adapter_access import AdapterAccess
from caraserve_cli.engine.batch_limit import BatchLimit
from caraserve_cli.engine.block_pool import BlockPool
from caraserve_cli.engine.cold_starts import ColdStarts
from caraserve_cli.engine.equal_steps import EqualSteps
from caraserve_cli.engine.holdings import Holdings
from caraserve_cli.engine.plan_draft import PlanDraft
from caraserve_cli.engine.plan_waits import WaitFor
from caraserve_cli.engine.residency import AdapterResidency
from caraserve_cli.engine.scheduling import FirstComeFirstServed, SchedulingPolicy
from caraserve_cli.engine.sequence_books import SequenceBooks
from caraserve_cli.engine.waiting_order import WaitingOrder
from caraserve_cli.perf.step_load import StepLoad
from caraserve_cli.step_plan import ScheduledChunk, StepPlan

# Waiting sequences whose adapters are read from disk before their turn comes. Chosen, not measured.
LOOKAHEAD_SEQUENCES = 64
# Of their blocks those that are hashed with one step, at about 2 µs each, which the step must not wait for.
# A sequence is not left half way.
LOOKAHEAD_BLOCKS = 256


class Scheduler:
    """Waiting and running sequences, and the blocks and adapter slots they hold.

    Args:
        config: sizes and limits.
        clock_ms: milliseconds since the start of the run.
        num_layers: of the base.
        policy: in which order those that wait are taken; by default first come, first served.

    Attributes:
        equal_steps: the next steps, where nobody comes or ends in them.
    """

    def __init__(
        self,
        config: EngineConfig,
        clock_ms: Callable[[], float],
        num_layers: int = 1,
        policy: SchedulingPolicy | None = None,
    ) -> None:
        self._config = config
        self._clock_ms = clock_ms
        self._batch_limit = BatchLimit(config.max_batch_tokens)
        self.blocks = BlockPool(config.num_kv_blocks)
        self.residency = AdapterResidency(config.adapter_memory_bytes, config.max_resident_adapters)
        self._holdings = Holdings(self.blocks, self.residency, config.kv_block_tokens)
        self.cold_starts = ColdStarts(self.residency, num_layers, clock_ms)
        self._access = AdapterAccess(
            self.residency,
            self.cold_starts,
            self._holdings,
            config.prefill_chunk_tokens,
            lambda: (*self.running, *self.waiting),
        )
        self._books = SequenceBooks(self._holdings, self.residency, self.cold_starts, self._access.lora_rank)
        self.waiting, self.running = self._books.waiting, self._books.running
        self.ending = self._books.ending
        self.equal_steps = EqualSteps(
            config,
            self._books,
            self._holdings,
            self.blocks,
            self._batch_limit,
            self.cold_starts,
            self._access,
        )
        self._policy = policy or FirstComeFirstServed()
        self._line = WaitingOrder(self._policy, self.waiting, self.running, clock_ms)

    @property
    def has_work(self) -> bool:
        return self._books.num_unfinished > 0

    @property
    def num_unfinished(self) -> int:
        """Sequences that wait, run, or have their last token under way."""
        return self._books.num_unfinished

    @property
    def is_tight(self) -> bool:
        """Whether the next plan may have to preempt: each running sequence may want one more block."""
        return self.blocks.num_free < len(self.running)

    def add(self, sequence: Sequence, adapter: AdapterInfo | None) -> None:
        """Queue a sequence that the caller has checked to fit the cache and the adapter pool alone."""
        if adapter is not None:
            self._access.know(adapter)
        self._books.add(sequence)
        self._line.note_newcomer()
        self._policy.add(sequence, adapter, self._clock_ms())

    def use_policy(self, policy: SchedulingPolicy) -> None:
        """Serve by another policy from now on.

        Raises:
            ValueError: there is unfinished work, which it knows nothing of.
        """
        if self.has_work:
            raise ValueError("sequences are unfinished that another policy was told of")
        self._policy = policy
        self._line = WaitingOrder(policy, self.waiting, self.running, self._clock_ms)

    def plan(self) -> StepPlan:
        """Choose the chunks of the next step. Empty when nothing can be computed before a token under way is
        known, or an adapter has arrived."""
        self.cold_starts.begin_plan()
        self._line.begin_plan()
        cold_starts = self.cold_starts
        # CPU workers may be at work for the step that is beside this one.
        assisted_tokens = 0 if cold_starts.lane.is_taken else cold_starts.supply.most_assisted_tokens
        draft = PlanDraft(self._batch_limit.num_tokens, assisted_tokens, cold_starts.lane.free_tokens)
        self._plan_running(draft)
        if not draft.num_preempted:
            self._plan_waiting(draft)
        self._line.end_plan()
        return draft.freeze()

    def load(self, chunks: SequenceOf[ScheduledChunk]) -> StepLoad:
        """What a step of these chunks computes; asked before they are committed."""
        return self._books.load(chunks)

    def wanted_adapters(self) -> list[str]:
        """Adapters of the next sequences that wait, in the order in which they will be needed, without those
        that have a place on the device."""
        ahead = (sequence.request.adapter for sequence in self._line.first(LOOKAHEAD_SEQUENCES))
        names = dict.fromkeys(name for name in ahead if name is not None)
        return [name for name in names if not self.residency.is_resident(name)]

    def look_ahead(self) -> None:
        """Do some of what the next plans need of those that wait, while the device computes. In no order but
        that of their coming: who is planned when is decided by then."""
        num_hashed = 0
        for sequence in islice(self.waiting, LOOKAHEAD_SEQUENCES):
            num_hashed += self._holdings.hash_prefix(sequence)
            if num_hashed >= LOOKAHEAD_BLOCKS:
                return

    def halve_batch(self) -> bool:
        """Plan smaller steps for a while, for one did not fit the device; False if they cannot be smaller."""
        return self._batch_limit.halve()

    def commit(self, plan: StepPlan) -> None:
        """Book the tokens of a plan that is under way: later steps are computed after it, and may build on
        its keys and values. So a sequence whose last token it computes gives back all that it holds: what is
        computed or copied there later comes after it."""
        self._batch_limit.note_step()
        self._books.commit(plan)

    def commit_beside(self, chunks: SequenceOf[ScheduledChunk]) -> None:
        """Book the tokens of chunks that are under way beside the steps: no step comes after them before they
        were checked, and until then they hold all that they have."""
        self._books.commit_beside(chunks)

    def check(self, chunk: ScheduledChunk, *, in_time: bool) -> None:
        """A chunk was computed beside the steps, or CPU workers had a part in it, and that came in time; if
        not, it is computed again when the adapter has arrived, and its token is void. Who was lent the
        adapter waits again, as one that needs it."""
        self._books.check(chunk, in_time=in_time)
        if not in_time:
            self._line.note_newcomer()

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out and give back all that it holds."""
        self._books.finish(sequence)
        self._policy.remove(sequence)

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
            if not num_tokens:
                # There is enough for CPU workers, or beside the step, or those that decode can bear no more.
                if self.cold_starts.way(sequence).beside_ms:
                    self.cold_starts.waits.note(sequence, WaitFor.COPIES)
                index += 1
                continue
            if not self._extend(sequence, num_tokens, draft):
                return
            self._schedule(sequence, num_tokens, draft)
            index += 1

    def _extend(self, sequence: Sequence, num_tokens: int, draft: PlanDraft) -> bool:
        """Give `sequence` the blocks for its chunk, preempting the youngest; False if it was itself. Whoever
        is computed beside the steps is still writing to its blocks."""
        num_missing = self._holdings.num_missing_blocks(sequence, num_tokens)
        while num_missing > self.blocks.num_free:
            victim = next(each for each in reversed(self.running) if not each.is_unchecked)
            self._books.preempt(victim)
            victim.timings.preempted_at_ms = self._clock_ms()
            self._line.note_newcomer()
            draft.num_preempted += 1
            if victim is sequence:
                return False
        self._holdings.give_blocks(sequence, num_tokens)
        return True

    # Waiting sequences

    def _plan_waiting(self, draft: PlanDraft) -> None:
        self._access.begin_plan()
        if self.waiting and (not draft.budget_tokens or len(self.running) >= self._config.max_running):
            return
        for sequence in self._line.in_plan():
            if not draft.budget_tokens or len(self.running) >= self._config.max_running:
                return
            if sequence.is_unchecked:
                continue
            most_tokens = self._policy.most_first_tokens(sequence, draft)
            if not most_tokens:
                continue
            decision = self._access.decide(sequence, draft)
            if decision is None or self._access.waits_for_copies(sequence, decision, draft):
                continue
            if not draft.most_tokens(decision):
                continue
            if not self._admit(sequence, decision, draft, most_tokens):
                return
        self._access.end_plan()

    def _admit(self, sequence: Sequence, decision: Decision, draft: PlanDraft, most_tokens: int) -> bool:
        """Start a waiting sequence, with a chunk of at most `most_tokens`, if the cache has room for all of
        its tokens; False if it has not."""
        if not self._holdings.give_prefix(sequence):
            return False
        if sequence.timings.first_scheduled_ms is None:
            sequence.timings.first_scheduled_ms = self._clock_ms()
            sequence.num_cached_tokens = sequence.num_computed_tokens
        elif (since_ms := sequence.timings.preempted_at_ms) is not None:
            sequence.timings.preempted_ms += self._clock_ms() - since_ms
            sequence.timings.preempted_at_ms = None
        draft.num_cached_tokens += sequence.num_computed_tokens
        self._access.acquire(sequence, decision, draft)
        self._books.admit(sequence)
        self._policy.note_admitted(sequence, self._clock_ms())
        num_tokens = min(self._most_tokens(sequence, draft), most_tokens)
        self._holdings.give_blocks(sequence, num_tokens)
        self._schedule(sequence, num_tokens, draft)
        return True

    # Chunks

    def _chunk_tokens(self, sequence: Sequence, draft: PlanDraft) -> int:
        """Of a running sequence in this step; 0 for nothing."""
        num_tokens = self._most_tokens(sequence, draft)
        if sequence.num_tokens - sequence.num_computed_tokens == 1:
            return num_tokens
        return min(num_tokens, self._policy.most_prompt_tokens(sequence, draft))

    def _most_tokens(self, sequence: Sequence, draft: PlanDraft) -> int:
        """That the step has room for, and that there are."""
        num_left = sequence.num_tokens - sequence.num_computed_tokens
        most_tokens = draft.most_tokens(self.cold_starts.way(sequence))
        return min(num_left, most_tokens, self._config.prefill_chunk_tokens)

    def _schedule(self, sequence: Sequence, num_tokens: int, draft: PlanDraft) -> None:
        start = sequence.num_computed_tokens
        yields_token = start + num_tokens == sequence.num_tokens
        way = self.cold_starts.way(sequence)
        lent_slot = self._access.lend(sequence, draft) if way.spares_load else None
        draft.add(ScheduledChunk(sequence, start, num_tokens, yields_token, way.cpu_layers, lent_slot), way)

    def check_integrity(self) -> None:
        """For tests, after every step.

        Raises:
            AssertionError: blocks, pins or queues do not add up.
        """
        self.blocks.check_integrity(s.block_table for s in self.running)
        self.residency.check_integrity(s.request.adapter for s in self.waiting)
        self._books.check_integrity()
        assert len(self.running) <= self._config.max_running
