"""How a sequence that waits comes by its adapter: room in the device's pool, its way there, and a hold on it.

The scheduler asks it for each sequence that it considers, in the order of its plan. No tensors.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from caraserve_cli.coldstart.policy import Decision
from caraserve_cli.core import AdapterInfo, ColdStart, Sequence, SequenceStatus
from caraserve_cli.engine.adapter_drain import AdapterDrain, AdapterUse
from caraserve_cli.engine.cold_starts import ColdStarts
from caraserve_cli.engine.holdings import Holdings
from caraserve_cli.engine.plan_draft import PlanDraft
from caraserve_cli.engine.plan_load import chunks_load, chunks_ranks
from caraserve_cli.engine.plan_waits import WaitFor
from caraserve_cli.engine.residency import AdapterResidency
from caraserve_cli.perf.step_load import NO_LOAD, StepLoad
from caraserve_cli.step_plan import AdapterLoan


class AdapterAccess:
    """The adapters of one replica's sequences.

    Args:
        residency: what has a place on the device.
        cold_starts: those on their way there.
        holdings: tells what of a prompt need not be computed.
        prefill_chunk_tokens: the most prompt tokens of one request in one step.
        find_users: every sequence that runs or waits.
    """

    def __init__(
        self,
        residency: AdapterResidency,
        cold_starts: ColdStarts,
        holdings: Holdings,
        prefill_chunk_tokens: int,
        find_users: Callable[[], Iterable[Sequence]],
    ) -> None:
        self._residency, self._cold_starts, self._holdings = residency, cold_starts, holdings
        self._chunk_tokens, self._find_users = prefill_chunk_tokens, find_users
        self._drain = AdapterDrain(residency, self._adapter_uses)
        self._adapters: dict[str, AdapterInfo] = {}
        self._of_chunks = 0, NO_LOAD  # how many chunks the plan had when its load was told last, and that

    def know(self, adapter: AdapterInfo) -> None:
        """A sequence that was queued asks for this one."""
        self._adapters[adapter.name] = adapter

    def lora_rank(self, adapter: str) -> int:
        """The largest rank of an adapter that some sequence has asked for."""
        return self._adapters[adapter].lora_rank

    def begin_plan(self) -> None:
        """Sequences are asked about from here on, in the order in which they are to be served."""
        self._drain.begin_plan()
        self._of_chunks = 0, NO_LOAD

    def end_plan(self) -> None:
        """All that wait had their turn."""
        self._drain.end_plan()

    def pass_plans(self, num_plans: int, *, is_anyone_waiting: bool) -> None:
        """Do what as many plans that admit nobody would."""
        self._drain.pass_plans(num_plans)
        if not is_anyone_waiting:
            self._drain.end_plan()

    def _has_room(self, sequence: Sequence) -> bool:
        """Whether its adapter can be used now, and nobody before it waits for the room."""
        adapter = sequence.request.adapter
        if adapter is None or sequence.adapter_slot is not None:
            return True
        if self._drain.is_blocked:
            if self._residency.is_resident(adapter):
                return self._drain.may_pass(adapter, self._num_steps_left(sequence))
        elif self._residency.can_acquire(self._adapters[adapter]):
            return True
        self._drain.block(self._adapters[adapter])
        self._cold_starts.waits.note(sequence, WaitFor.ROOM)
        return False

    def decide(self, sequence: Sequence, draft: PlanDraft) -> Decision | None:
        """How its adapter is brought to the device, if it is; None while that has no room, or the adapter is
        still being read from disk."""
        adapter = sequence.request.adapter
        if adapter is None:
            return Decision(ColdStart.NONE)
        may_spare_load = self._cold_starts.may_spare_load(sequence)
        if not may_spare_load and not self._has_room(sequence):
            return None
        if not self._cold_starts.is_cold(adapter):
            return Decision(ColdStart.RESIDENT)
        if not self._residency.is_resident(adapter) and not self._cold_starts.supply.is_ready(adapter):
            self._cold_starts.waits.note(sequence, WaitFor.DISK)
            return None
        decision = self._cold_starts.decide(
            sequence,
            self._adapters[adapter],
            count_cached_tokens=self._holdings.num_cached_tokens,
            batch_tokens=draft.num_tokens,
            num_decoding=len(draft.chunks),
            beside=self._load(draft),
            may_spare_load=may_spare_load,
        )
        if may_spare_load and not decision.spares_load and not self._has_room(sequence):
            return None
        return decision

    def _load(self, draft: PlanDraft) -> StepLoad:
        """Of the step so far. All that wait ask for it, and few of them join."""
        if self._of_chunks[0] != len(draft.chunks):
            ranks = chunks_ranks(draft.chunks, self.lora_rank)
            self._of_chunks = len(draft.chunks), chunks_load(draft.chunks, ranks)
        return self._of_chunks[1]

    def waits_for_copies(self, sequence: Sequence, decision: Decision, draft: PlanDraft) -> bool:
        """Whether it waits until its adapter, or enough of it, is on the device; the copying then begins with
        this plan at the latest."""
        waits_for_lane = decision.beside_ms > 0 and not draft.beside_tokens
        if decision.spares_load:
            # It waits for nothing but its turn beside the others.
            if waits_for_lane:
                self._cold_starts.waits.note(sequence, WaitFor.COPIES)
            return waits_for_lane
        if decision.how is ColdStart.ON_DEMAND or decision.hold_ms or waits_for_lane:
            self.acquire(sequence, decision, draft)
        if not waits_for_lane and (sequence.adapter_slot is None or self._cold_starts.may_compute(sequence)):
            return False
        self._cold_starts.waits.note(sequence, WaitFor.COPIES)
        return True

    def acquire(self, sequence: Sequence, decision: Decision, draft: PlanDraft) -> None:
        """Have a sequence hold its adapter, which the plan loads if it has no place on the device; nothing of
        an adapter that is not to be loaded for it."""
        adapter = sequence.request.adapter
        if adapter is None or sequence.adapter_slot is not None:
            return
        if decision.spares_load:
            self._cold_starts.note_spared(sequence, decision)
            if sequence.num_preemptions == 0:
                sequence.cold_start = decision.how
            return
        self._drain.note_user(adapter, self._num_steps_left(sequence))
        acquired = self._residency.acquire(
            self._adapters[adapter],
            decision.how,
            decision.cpu_layers,
            is_held=decision.hold_ms > 0,
            is_beside=decision.beside_ms > 0,
        )
        sequence.adapter_slot = acquired.adapter_slot
        if acquired.needs_load:
            draft.pool_ops += acquired.pool_ops
            self._cold_starts.note_load(self._adapters[adapter], acquired.adapter_slot, decision)
        if sequence.num_preemptions == 0:
            if not sequence.num_failed_assists:
                sequence.cold_start = decision.how
            sequence.timings.load = self._cold_starts.load_of(adapter)

    def lend(self, sequence: Sequence, draft: PlanDraft) -> int:
        """Have the plan lend a sequence its adapter, which is not loaded for it; by which number."""
        assert sequence.request.adapter is not None
        number = self._residency.max_adapters + len(draft.loans)
        draft.loans.append(AdapterLoan(sequence.request.adapter, number))
        return number

    def _adapter_uses(self) -> dict[str, AdapterUse]:
        uses: defaultdict[str, AdapterUse] = defaultdict(AdapterUse)
        for sequence in self._find_users():
            if sequence.request.adapter is not None:
                use = uses[sequence.request.adapter]
                use.num_waiting += sequence.status is SequenceStatus.WAITING
                use.num_steps = max(use.num_steps, self._num_steps_left(sequence))
        return uses

    def _num_steps_left(self, sequence: Sequence) -> int:
        """How many steps compute a part of it, at most, if each computes as much of it as it may."""
        num_known = sequence.num_tokens - sequence.num_computed_tokens
        num_chunks = -(-num_known // self._chunk_tokens)
        num_outputs = sequence.num_tokens - sequence.num_prompt_tokens
        return num_chunks + sequence.max_output_tokens - num_outputs - 1  # the last chunk yields a token
