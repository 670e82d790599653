"""Which sequences wait, run and end, and what is booked of those whose steps are under way. Decides nothing.

A sequence waits, runs, waits again where it was preempted, and ends; with its last token under way it is
`ENDING`, and holds nothing any more.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from collections.abc import Sequence as SequenceOf

from caraserve_cli.core import ColdStart, Sequence, SequenceStatus
from caraserve_cli.engine.cold_starts import ColdStarts
from caraserve_cli.engine.holdings import Holdings
from caraserve_cli.engine.plan_load import chunks_load, chunks_ranks
from caraserve_cli.engine.residency import AdapterResidency
from caraserve_cli.engine.running_adapters import RunningAdapters
from caraserve_cli.perf.step_load import StepLoad
from caraserve_cli.step_plan import ScheduledChunk, StepPlan


class SequenceBooks:
    """The sequences of one replica.

    Args:
        holdings: of the sequences.
        residency: told who waits for an adapter.
        cold_starts: told of steps beside the others, and of assistance that came too late.
        lora_rank_of: an adapter that some sequence has asked for → its largest rank.

    Attributes:
        waiting: by arrival.
        running: by admission.
        ending: those whose last token is under way.
    """

    def __init__(
        self,
        holdings: Holdings,
        residency: AdapterResidency,
        cold_starts: ColdStarts,
        lora_rank_of: Callable[[str], int],
    ) -> None:
        self._holdings, self._residency, self._cold_starts = holdings, residency, cold_starts
        self._lora_rank_of = lora_rank_of
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.ending: set[Sequence] = set()
        self._adapters = RunningAdapters()
        self._num_added = 0
        self._order: dict[Sequence, int] = {}  # of arrival, of all that are not finished

    @property
    def num_unfinished(self) -> int:
        """Sequences that wait, run, or have their last token under way."""
        return len(self._order)

    def load(self, chunks: SequenceOf[ScheduledChunk]) -> StepLoad:
        """What a step of these chunks of running sequences computes."""
        if len(chunks) == len(self.running):
            return chunks_load(chunks, self._adapters.ranks)
        return chunks_load(chunks, chunks_ranks(chunks, self._lora_rank_of))

    # Coming and going

    def add(self, sequence: Sequence) -> None:
        """A new one waits."""
        self._order[sequence] = self._num_added
        self._num_added += 1
        self.waiting.append(sequence)
        self._residency.note_waiting(sequence.request.adapter, +1)

    def admit(self, sequence: Sequence) -> None:
        """One that waits runs."""
        self.waiting.remove(sequence)
        self._residency.note_waiting(sequence.request.adapter, -1)
        self.running.append(sequence)
        sequence.status = SequenceStatus.RUNNING
        if sequence.request.adapter is not None:
            self._adapters.add(sequence.request.adapter, self._lora_rank_of(sequence.request.adapter))

    def preempt(self, sequence: Sequence) -> None:
        """Back to the queue; its tokens stay, their cache is computed again."""
        self._wait_again(sequence)
        sequence.num_preemptions += 1

    def _wait_again(self, sequence: Sequence) -> None:
        """At its place by arrival."""
        self._stop_running(sequence)
        sequence.status = SequenceStatus.WAITING
        sequence.num_computed_tokens = 0
        insort(self.waiting, sequence, key=self._order.__getitem__)
        self._residency.note_waiting(sequence.request.adapter, +1)

    def begin_end(self, sequence: Sequence) -> None:
        """The last token of one that runs is under way."""
        self._stop_running(sequence)
        sequence.status = SequenceStatus.ENDING
        self.ending.add(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Take a sequence out and give back all that it holds."""
        if sequence.status is SequenceStatus.RUNNING:
            self._stop_running(sequence)
        elif sequence.status is SequenceStatus.ENDING:
            self.ending.remove(sequence)
        else:
            self.waiting.remove(sequence)
            self._residency.note_waiting(sequence.request.adapter, -1)
            self._holdings.take_back(sequence)
        sequence.status = SequenceStatus.FINISHED
        del self._order[sequence]

    def _stop_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._cold_starts.leave(sequence)
        self._holdings.take_back(sequence)
        if sequence.request.adapter is not None:
            self._adapters.remove(sequence.request.adapter, self._lora_rank_of(sequence.request.adapter))

    # Steps under way

    def commit(self, plan: StepPlan) -> None:
        """See `Scheduler.commit`."""
        for chunk in plan.chunks:
            sequence = chunk.sequence
            _book(chunk)
            sequence.is_unchecked = chunk.cpu_layers > 0
            if sequence.is_unchecked:
                continue  # it holds all until it is known that it need not be computed again
            self._holdings.remember(sequence)
            if sequence.is_ending:
                self.begin_end(sequence)

    def commit_beside(self, chunks: SequenceOf[ScheduledChunk]) -> None:
        """See `Scheduler.commit_beside`."""
        self._cold_starts.note_beside(chunks)
        for chunk in chunks:
            _book(chunk)
            chunk.sequence.is_unchecked = True

    def check(self, chunk: ScheduledChunk, *, in_time: bool) -> None:
        """See `Scheduler.check`."""
        sequence = chunk.sequence
        if not sequence.is_unchecked:
            return
        sequence.is_unchecked = False
        if sequence.status is SequenceStatus.FINISHED:
            return  # it was taken out meanwhile, and holds nothing
        if in_time:
            self._holdings.remember(sequence)
            return
        assert sequence.request.adapter is not None
        sequence.num_pending_tokens -= chunk.yields_token
        sequence.num_failed_assists += 1
        sequence.cold_start = ColdStart.ON_DEMAND
        if self._cold_starts.is_spared(sequence):
            # Now it needs its adapter, and room for that like everybody else.
            self._wait_again(sequence)
            return
        # A preempted one starts anew anyway.
        sequence.num_computed_tokens = min(chunk.start, sequence.num_computed_tokens)
        self._cold_starts.note_failed_assist(sequence.request.adapter)

    def check_integrity(self) -> None:
        """For tests, after every step.

        Raises:
            AssertionError: queues do not add up.
        """
        assert not any(s.block_table for s in self.waiting)
        assert set(self._order) == {*self.waiting, *self.running, *self.ending}
        assert all(not s.block_table and s.adapter_slot is None for s in self.ending)
        orders = [self._order[s] for s in self.waiting]
        assert orders == sorted(orders), "the queue is out of order"
        names = {s.request.adapter for s in self.running if s.request.adapter is not None}
        lora_ranks = [self._lora_rank_of(name) for name in names]
        assert self._adapters.ranks == (len(lora_ranks), sum(lora_ranks), max(lora_ranks, default=0))


def _book(chunk: ScheduledChunk) -> None:
    chunk.sequence.num_computed_tokens = chunk.start + chunk.num_tokens
    chunk.sequence.num_pending_tokens += chunk.yields_token
