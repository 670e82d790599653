"""Decides what each step computes: continuous batching, chunked prefill, admission, preemption.

`plan()` takes blocks and adapter slots and returns a `StepPlan`; `commit()` books what the plan computes once
it is under way, so that the next one can be planned before its tokens are known.
Knows no tensors, no clock but the one given, and no policy beyond first come, first served; the simulator
runs the very same class.

Why nobody starves: running sequences are served in the order of their admission, and the last one admitted
is the first preempted, so the oldest always goes on; waiting ones are admitted in the order of arrival. Only
a sequence whose adapter does not fit beside the adapters in use may be passed, by sequences that need no
load and prolong the use of the adapters whose room it waits for by a bounded time at most (`adapter_drain`).
"""

from __future__ import annotations

from bisect import insort
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from caraserve_cli.config import EngineConfig
from caraserve_cli.core import (
    AdapterInfo,
    ColdStart,
    PoolOp,
    ScheduledChunk,
    Sequence,
    SequenceStatus,
    StepPlan,
)
from caraserve_cli.engine.adapter_drain import AdapterDrain, AdapterUse
from caraserve_cli.engine.batch_limit import BatchLimit
from caraserve_cli.engine.block_pool import BlockPool, hash_block
from caraserve_cli.engine.residency import AdapterResidency


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    budget_tokens: int
    chunks: list[ScheduledChunk] = field(default_factory=list)
    pool_ops: list[PoolOp] = field(default_factory=list)
    num_preempted: int = 0
    num_cached_tokens: int = 0

    def freeze(self) -> StepPlan:
        return StepPlan(
            tuple(self.chunks),
            tuple(self.pool_ops),
            self.num_preempted,
            self.num_cached_tokens,
        )


class Scheduler:
    """Waiting and running sequences, and the blocks and adapter slots they hold."""

    def __init__(self, config: EngineConfig, clock_ms: Callable[[], float]) -> None:
        self._config = config
        self._clock_ms = clock_ms
        self._batch_limit = BatchLimit(config.max_batch_tokens)
        self.blocks = BlockPool(config.num_kv_blocks)
        self.residency = AdapterResidency(config.adapter_memory_bytes, config.max_resident_adapters)
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
        known."""
        draft = _Draft(self._batch_limit.num_tokens)
        self._plan_running(draft)
        if not draft.num_preempted:
            self._plan_waiting(draft)
        return draft.freeze()

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
            self._remember_blocks(sequence)
            sequence.num_pending_tokens += chunk.yields_token
            if sequence.is_ending:
                self.running.remove(sequence)
                self._give_back(sequence)
                sequence.status = SequenceStatus.ENDING
                self.ending.add(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out and give back all that it holds."""
        if sequence.status is SequenceStatus.RUNNING:
            self.running.remove(sequence)
            self._give_back(sequence)
        elif sequence.status is SequenceStatus.ENDING:
            self.ending.remove(sequence)
        else:
            self.waiting.remove(sequence)
            self.residency.note_waiting(sequence.request.adapter, -1)
        sequence.status = SequenceStatus.FINISHED
        del self._order[sequence]

    def users_of(self, adapter: str) -> list[Sequence]:
        """Every sequence that runs or waits and asked for `adapter`."""
        return [s for s in (*self.running, *self.waiting) if s.request.adapter == adapter]

    # Running sequences

    def _plan_running(self, draft: _Draft) -> None:
        index = 0
        while index < len(self.running) and draft.budget_tokens:
            sequence = self.running[index]
            num_tokens = self._chunk_tokens(sequence, draft)
            if not self._extend(sequence, num_tokens, draft):
                return
            self._schedule(sequence, num_tokens, draft)
            index += 1

    def _extend(self, sequence: Sequence, num_tokens: int, draft: _Draft) -> bool:
        """Give `sequence` the blocks for its chunk, preempting the youngest; False if it was itself."""
        num_missing = self._num_missing_blocks(sequence, num_tokens)
        while num_missing > self.blocks.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            draft.num_preempted += 1
            if victim is sequence:
                return False
        sequence.block_table += self.blocks.allocate(num_missing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the queue, at its place by arrival; its tokens stay, their cache is computed again."""
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_computed_tokens = 0
        sequence.num_preemptions += 1
        insort(self.waiting, sequence, key=self._order.__getitem__)
        self.residency.note_waiting(sequence.request.adapter, +1)

    def _give_back(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_findable_blocks = 0
        if sequence.request.adapter is not None:
            self.residency.release(sequence.request.adapter)
        sequence.adapter_slot = None

    # Waiting sequences

    def _plan_waiting(self, draft: _Draft) -> None:
        self._drain.begin_plan()
        for sequence in list(self.waiting):
            if not draft.budget_tokens or len(self.running) >= self._config.max_running:
                return
            if self._has_adapter_room(sequence) and not self._admit(sequence, draft):
                return
        self._drain.end_plan()

    def _has_adapter_room(self, sequence: Sequence) -> bool:
        """Whether its adapter can be used now, and nobody before it waits for the room."""
        adapter = sequence.request.adapter
        if adapter is None:
            return True
        if self._drain.is_blocked:
            if self.residency.is_resident(adapter):
                return self._drain.may_pass(adapter, self._num_steps_left(sequence))
        elif self.residency.can_acquire(self._adapters[adapter]):
            return True
        self._drain.block(self._adapters[adapter])
        return False

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

    def _admit(self, sequence: Sequence, draft: _Draft) -> bool:
        """Start a waiting sequence if the cache has room for all of its tokens; False if it has not."""
        cached_blocks = self.blocks.find_prefix(self._reusable_hashes(sequence))
        num_from_free = sum(map(self.blocks.is_free, cached_blocks))
        num_total = self._num_blocks(len(sequence.token_ids))
        if num_total - len(cached_blocks) + num_from_free > self.blocks.num_free:
            return False
        self.blocks.share(cached_blocks)
        sequence.block_table = list(cached_blocks)
        sequence.num_findable_blocks = len(cached_blocks)
        sequence.num_computed_tokens = len(cached_blocks) * self._config.kv_block_tokens
        if sequence.timings.first_scheduled_ms is None:
            sequence.timings.first_scheduled_ms = self._clock_ms()
            sequence.num_cached_tokens = sequence.num_computed_tokens
        draft.num_cached_tokens += sequence.num_computed_tokens
        self._acquire_adapter(sequence, draft)
        self.waiting.remove(sequence)
        self.residency.note_waiting(sequence.request.adapter, -1)
        self.running.append(sequence)
        sequence.status = SequenceStatus.RUNNING
        num_tokens = self._chunk_tokens(sequence, draft)
        sequence.block_table += self.blocks.allocate(self._num_missing_blocks(sequence, num_tokens))
        self._schedule(sequence, num_tokens, draft)
        return True

    def _acquire_adapter(self, sequence: Sequence, draft: _Draft) -> None:
        adapter = sequence.request.adapter
        if adapter is None:
            return
        self._drain.note_user(adapter, self._num_steps_left(sequence))
        acquired = self.residency.acquire(self._adapters[adapter])
        sequence.adapter_slot = acquired.adapter_slot
        draft.pool_ops += acquired.pool_ops
        if sequence.num_preemptions == 0:
            sequence.cold_start = ColdStart.ON_DEMAND if acquired.needs_load else ColdStart.RESIDENT

    # Chunks and blocks

    def _chunk_tokens(self, sequence: Sequence, draft: _Draft) -> int:
        num_left = sequence.num_tokens - sequence.num_computed_tokens
        return min(num_left, draft.budget_tokens, self._config.prefill_chunk_tokens)

    def _schedule(self, sequence: Sequence, num_tokens: int, draft: _Draft) -> None:
        start = sequence.num_computed_tokens
        yields_token = start + num_tokens == sequence.num_tokens
        draft.chunks.append(ScheduledChunk(sequence, start, num_tokens, yields_token))
        draft.budget_tokens -= num_tokens

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._config.kv_block_tokens)

    def _num_missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        return self._num_blocks(sequence.num_computed_tokens + num_tokens) - len(sequence.block_table)

    def _reusable_hashes(self, sequence: Sequence) -> list[bytes]:
        """Hashes of the full blocks before the last token, which must be computed to yield the next."""
        if sequence.prefix_root is None:
            return []
        num_reusable = (len(sequence.token_ids) - 1) // self._config.kv_block_tokens
        self._hash_blocks(sequence, num_reusable)
        return sequence.block_hashes[:num_reusable]

    def _remember_blocks(self, sequence: Sequence) -> None:
        """Make full blocks findable by later prompts, as far as their tokens are known."""
        if sequence.prefix_root is None:
            return
        num_known = min(sequence.num_computed_tokens, len(sequence.token_ids))
        num_full = num_known // self._config.kv_block_tokens
        self._hash_blocks(sequence, num_full)
        for index in range(sequence.num_findable_blocks, num_full):
            self.blocks.remember(sequence.block_table[index], sequence.block_hashes[index])
        sequence.num_findable_blocks = max(sequence.num_findable_blocks, num_full)

    def _hash_blocks(self, sequence: Sequence, num_blocks: int) -> None:
        size, hashes = self._config.kv_block_tokens, sequence.block_hashes
        assert sequence.prefix_root is not None
        while len(hashes) < num_blocks:
            parent = hashes[-1] if hashes else sequence.prefix_root
            first = len(hashes) * size
            hashes.append(hash_block(parent, sequence.token_ids[first : first + size]))

    def check_integrity(self) -> None:
        """For tests, after every step.

        Raises:
            AssertionError: blocks, pins or queues do not add up.
        """
        self.blocks.check_integrity(s.block_table for s in self.running)
        self.residency.check_integrity(s.request.adapter for s in self.waiting)
        assert all(not s.block_table and s.adapter_slot is None for s in self.waiting)
        assert set(self._order) == {*self.waiting, *self.running, *self.ending}
        assert all(not s.block_table and s.adapter_slot is None for s in self.ending)
        assert len(self.running) <= self._config.max_running
        orders = [self._order[s] for s in self.waiting]
        assert orders == sorted(orders), "the queue is out of order"
