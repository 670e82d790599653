"""Adapters that are on their way: which requests may be computed meanwhile, and how.

The scheduler asks it before it takes a sequence into a step. It knows decisions and who is under way; the
policy decides, and the runner, behind `AdapterSupply`, knows what has arrived. No tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

from caraserve_cli.coldstart.policy import Arrival, ColdStartPolicy, Decision, Stream
from caraserve_cli.core import AdapterInfo, ColdStart, LoadTime, Sequence
from caraserve_cli.engine.beside_lane import BesideLane
from caraserve_cli.engine.plan_waits import PlanWaits
from caraserve_cli.engine.residency import AdapterResidency
from caraserve_cli.perf.step_load import NO_LOAD, StepLoad
from caraserve_cli.step_plan import ScheduledChunk


class AdapterSupply(Protocol):
    """Where adapters are, as a runner knows it."""

    def is_ready(self, adapter: str) -> bool:
        """Whether a load waits for no disk: it is in host memory, or known to be unreadable."""
        ...

    def ready_ms(self, adapter: str) -> float:
        """For how long it has been in host memory; 0 where it is not."""
        ...

    def has_arrived(self, adapter_slot: int) -> bool:
        """Whether all that was loaded into a slot is on the device."""
        ...

    def load_ms(self, adapter_slot: int) -> float | None:
        """How long what has arrived in a slot was on its way; None where nothing is copied."""
        ...

    def can_assist(self, adapter: str) -> bool:
        """Whether CPU workers can compute with this adapter now."""
        ...

    @property
    def free_workers(self) -> int: ...

    @property
    def most_assisted_tokens(self) -> int:
        """That CPU workers can be given in one step."""
        ...

    @property
    def link_backlog_ms(self) -> float:
        """How long the copies under way will still take."""
        ...

    @property
    def link_bytes_per_ms(self) -> float | None:
        """How fast copies were lately; None where none has told."""
        ...


_IN_PLACE = Decision(ColdStart.RESIDENT)


class InPlace:
    """The supply of a device that uses adapters where they are: what is asked for is there."""

    free_workers = 0
    most_assisted_tokens = 0
    link_backlog_ms = 0.0
    link_bytes_per_ms: float | None = None

    def is_ready(self, adapter: str) -> bool:
        """See `AdapterSupply`."""
        return True

    def ready_ms(self, adapter: str) -> float:
        """See `AdapterSupply`."""
        return 0.0

    def has_arrived(self, adapter_slot: int) -> bool:
        """See `AdapterSupply`."""
        return True

    def load_ms(self, adapter_slot: int) -> float | None:
        """See `AdapterSupply`."""
        return None

    def can_assist(self, adapter: str) -> bool:
        """See `AdapterSupply`."""
        return False


class _Spared(NamedTuple):
    """The one running sequence of an adapter that is not loaded for it."""

    sequence: Sequence
    decision: Decision


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """An adapter whose copying began with a plan made at `since_ms`."""

    adapter_slot: int
    decision: Decision
    since_ms: float
    load: LoadTime = field(default_factory=LoadTime)


class ColdStarts:
    """The cold starts of one replica.

    Args:
        residency: what has a place on the device; only looked at.
        num_layers: of the base.
        clock_ms: milliseconds since the start of the run.

    Attributes:
        supply: where adapters are.
        policy: decides how an adapter that has no place there yet comes to it.
        waits: who was passed over by the last plan.
        lane: room beside the replica's steps.
    """

    def __init__(self, residency: AdapterResidency, num_layers: int, clock_ms: Callable[[], float]) -> None:
        self.supply: AdapterSupply = InPlace()
        self.policy: ColdStartPolicy = Stream()
        self.waits = PlanWaits()
        self.lane = BesideLane()
        self._residency, self._num_layers, self._clock_ms = residency, num_layers, clock_ms
        self._under_way: dict[str, _UnderWay] = {}
        self._spared: dict[str, _Spared] = {}
        # Of the loads of the plan in the making: those copied together, and those copied one after the other.
        self._together_bytes = self._ahead_bytes = 0

    def begin_plan(self) -> None:
        """What was loaded by the last plan has begun, and who was passed over by it has waited until now."""
        self._together_bytes = self._ahead_bytes = 0
        self.waits.end(self._clock_ms(), self.supply.ready_ms)
        self.note_arrivals()

    def note_arrivals(self) -> None:
        """Forget what has arrived, or left before it did."""
        for adapter, under_way in tuple(self._under_way.items()):
            if not self._residency.is_resident(adapter):
                del self._under_way[adapter]
            elif self.supply.has_arrived(under_way.adapter_slot):
                under_way.load.ms = self.supply.load_ms(under_way.adapter_slot)
                del self._under_way[adapter]

    @property
    def under_way(self) -> frozenset[str]:
        """Adapters that have a place on the device and have not arrived, as far as was noted."""
        return frozenset(self._under_way)

    def load_of(self, adapter: str) -> LoadTime | None:
        """Of an adapter that is under way: filled when it has arrived. None for others."""
        under_way = self._under_way.get(adapter)
        return None if under_way is None else under_way.load

    def decide(
        self,
        sequence: Sequence,
        info: AdapterInfo,
        *,
        count_cached_tokens: Callable[[Sequence], int],
        batch_tokens: int,
        num_decoding: int,
        beside: StepLoad = NO_LOAD,
        may_spare_load: bool = False,
    ) -> Decision:
        """How the adapter of a sequence comes to the device; if it is on its way, as was decided then.

        Args:
            sequence: it has no adapter slot.
            info: of its adapter, which is not on the device.
            count_cached_tokens: of a sequence, those that need not be computed.
            batch_tokens: of other sequences in the step that it would join.
            num_decoding: running sequences that a longer step would delay.
            beside: what these sequences compute: their adapters and contexts lengthen every step.
            may_spare_load: as of an `Arrival`.
        """
        under_way = self._under_way.get(info.name)
        if under_way is not None:
            return under_way.decision
        if sequence.num_failed_assists and not sequence.num_preemptions:
            # It waits again only since what it was lent came too late.
            return Decision(ColdStart.ON_DEMAND)
        return self.policy.decide(
            Arrival(
                prompt_tokens=len(sequence.token_ids) - count_cached_tokens(sequence),
                max_output_tokens=sequence.max_output_tokens,
                lora_rank=info.lora_rank,
                adapter_bytes=info.num_bytes,
                num_layers=self._num_layers,
                batch_tokens=batch_tokens,
                num_decoding=num_decoding,
                decoding_ranks=beside.ranks,
                decoding_kv_tokens=beside.kv_tokens,
                link_backlog_ms=self.supply.link_backlog_ms,
                free_workers=self.supply.free_workers,
                can_assist=self.supply.can_assist(info.name),
                together_bytes=self._together_bytes,
                ahead_bytes=self._ahead_bytes,
                link_bytes_per_ms=self.supply.link_bytes_per_ms,
                beside_wait_ms=self.lane.wait_ms(self._clock_ms()),
                may_spare_load=may_spare_load,
                is_link_wanted=self._residency.num_wanted > 1,
            )
        )

    def may_spare_load(self, sequence: Sequence) -> bool:
        """Whether the adapter of a sequence that waits need not be loaded if CPU workers compute all of its
        prompt: the token that comes next is its last one, and nobody else runs or waits with that adapter."""
        adapter = sequence.request.adapter
        return (
            adapter is not None
            and sequence.num_tokens_left == 1
            and not sequence.num_failed_assists
            and not self._residency.is_resident(adapter)
            and self._residency.num_waiting(adapter) == 1
            and adapter not in self._spared
        )

    def is_cold(self, adapter: str) -> bool:
        """Whether an adapter has no place on the device, or is still on its way there."""
        return not self._residency.is_resident(adapter) or adapter in self._under_way

    def note_load(self, info: AdapterInfo, adapter_slot: int, decision: Decision) -> None:
        """The plan in the making loads an adapter."""
        self._under_way[info.name] = _UnderWay(adapter_slot, decision, self._clock_ms())
        if decision.hold_ms or decision.how in (ColdStart.ON_DEMAND, ColdStart.ON_DEMAND_BLOCKING):
            self._ahead_bytes += info.num_bytes
        else:
            self._together_bytes += info.num_bytes

    def note_spared(self, sequence: Sequence, decision: Decision) -> None:
        """The plan in the making admits a sequence whose adapter it does not load."""
        assert sequence.request.adapter is not None
        self._spared[sequence.request.adapter] = _Spared(sequence, decision)

    def is_spared(self, sequence: Sequence) -> bool:
        """Whether a running sequence is computed without its adapter being loaded for it."""
        spared = self._spared.get(sequence.request.adapter or "")
        return spared is not None and spared.sequence is sequence

    def leave(self, sequence: Sequence) -> None:
        """A sequence runs no more."""
        if self._spared and self.is_spared(sequence):
            assert sequence.request.adapter is not None
            del self._spared[sequence.request.adapter]

    def note_failed_assist(self, adapter: str) -> None:
        """What CPU workers were to compute for it came too late: whoever needs it waits for its arrival."""
        under_way = self._under_way.get(adapter)
        if under_way is not None:
            self._under_way[adapter] = replace(under_way, decision=Decision(ColdStart.ON_DEMAND))

    def may_compute(self, sequence: Sequence) -> bool:
        """Whether the next chunk of a sequence that holds its adapter can be in a step now."""
        if sequence.is_unchecked:
            return False
        if self._spared and self.is_spared(sequence):
            return True
        adapter = sequence.request.adapter
        under_way = None if adapter is None else self._under_way.get(adapter)
        if under_way is None:
            return True
        decision = under_way.decision
        if decision.how is ColdStart.ON_DEMAND or self._clock_ms() < under_way.since_ms + decision.hold_ms:
            return False
        # Beside the copies, CPU workers compute prompts only.
        return not decision.cpu_layers or sequence.num_computed_tokens < sequence.num_prompt_tokens

    def may_all_decode(self, sequences: Iterable[Sequence]) -> bool:
        """Whether all of these, which hold their adapters, can be in every step from now on."""
        if not self._under_way and not self._spared:
            return True
        return all(self.may_compute(each) and not self.way(each).cpu_layers for each in sequences)

    def next_hold_end_ms(self) -> float:
        """When the first of the holds ends that still last; infinite if none does."""
        now_ms = self._clock_ms()
        ends_ms = (each.since_ms + each.decision.hold_ms for each in self._under_way.values())
        return min((end_ms for end_ms in ends_ms if end_ms > now_ms), default=math.inf)

    def way(self, sequence: Sequence) -> Decision:
        """How the adapter comes to the device, if it does, with which the next chunk of a sequence is
        computed."""
        adapter = sequence.request.adapter
        if self._spared and adapter is not None and self.is_spared(sequence):
            return self._spared[adapter].decision
        under_way = None if adapter is None else self._under_way.get(adapter)
        return _IN_PLACE if under_way is None else under_way.decision

    def note_beside(self, chunks: Iterable[ScheduledChunk]) -> None:
        """These were begun beside the replica's steps."""
        self.lane.take(self._clock_ms() + max(self.way(chunk.sequence).beside_ms for chunk in chunks))
