"""The break-even model: what every way of a cold start would cost an arrival and those who run beside it.

Pure: a machine's profile and an arrival's facts in, predictions out; tens of microseconds for one arrival.

Which way wins (`best`). A cold start must delay neither its own first token nor the others' next ones, and
often cannot have both: what is smallest is the sum of its TTFT and half of what all the others lose together.
Without others, TTFT alone counts. Where somebody waits for another adapter, the time for which this one's
copies keep the link counts half too: so much later the next ones begin.

The ways differ in how many leading layers CPU workers compute, and in whether the request prefills at once
in the batch; or beside it, so that nobody waits for its copies or its CPU workers, and the base's weights are
read once more (`Decision.beside_ms`); or is held until the rest of its copies hides under its prefill
(`Decision.hold_ms`): that delays nobody, and its own TTFT is the same as if it had waited for the link.
Layers are given to CPU workers in the pieces in which steps are computed (`transfer.LayerOrder`). Who ends
with its first token may have them compute all layers, and its adapter is then not copied at all
(`Decision.spares_load`): of ways that cost the same, that comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.coldstart.arrival import Arrival, Decision
from caraserve_cli.coldstart.arrival_times import ArrivalTimes
from caraserve_cli.coldstart.layer_race import LayerRace
from caraserve_cli.core import ColdStart
from caraserve_cli.perf.profile import MachineProfile

# What a millisecond counts that one of the others loses, beside one of the arrival's TTFT. H100, Llama-2-7B's
# shape, 9 cold arrivals a second, 16 tokens, rank 64, a link of 3 GB/s emulated, mean TTFT / latency in ms:
# on-demand 80 / 830; with 0.5 / 1.0 here 50 / 852 and 57 / 837.
_OTHERS_SHARE = 0.5
# Costs that differ by less are equal: a measured model does not know better.
_EQUAL_COST = 1.01


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a way would give.

    Attributes:
        decision: the way.
        ttft_ms: the arrival's, from when the step could begin that is planned now.
        stall_ms: how much longer its first step, or if its adapter is not loaded all of its steps, last for
            the others in it than with the adapter on the device.
        complete_ms: from then until the arrival can decode its second token, or could.
    """

    decision: Decision
    ttft_ms: float
    stall_ms: float
    complete_ms: float


def _decision(cpu_layers: int, hold_ms: float = 0.0, beside_ms: float = 0.0) -> Decision:
    how = ColdStart.CPU_ASSIST if cpu_layers else ColdStart.STREAM
    return Decision(how, cpu_layers, hold_ms, beside_ms)


@cache
def _piece_ends(num_layers: int) -> tuple[int, ...]:
    """Where the pieces of a step end."""
    return tuple(end for _, end in LayerOrder().groups(num_layers))


class BreakEven:
    """Predictions for one machine.

    Args:
        profile: of the machine and base.
        prefill_chunk_tokens: the most prompt tokens of one request in one step.
        is_padded: which LoRA kernel runs there.
    """

    def __init__(
        self, profile: MachineProfile, prefill_chunk_tokens: int = 512, *, is_padded: bool = False
    ) -> None:
        self.profile = profile
        self._chunk_tokens, self._is_padded = prefill_chunk_tokens, is_padded
        self._times = ArrivalTimes(profile, prefill_chunk_tokens, is_padded=is_padded)

    def emulated(self, link_gbps: float) -> BreakEven:
        """Of the same machine with its link slowed down to `link_gbps` GB/s."""
        return BreakEven(self.profile.emulated(link_gbps), self._chunk_tokens, is_padded=self._is_padded)

    def race(self, arrival: Arrival, *, in_turn: bool = False, beside: bool = False) -> LayerRace:
        """See `ArrivalTimes.race`."""
        return self._times.race(arrival, in_turn=in_turn, beside=beside)

    def can_assist(self, arrival: Arrival) -> bool:
        """Whether CPU workers can compute anything of this arrival's prompt."""
        return arrival.can_assist and arrival.free_workers > 0 and self.profile.cpu_lora is not None

    def ways(self, arrival: Arrival) -> Sequence[Prediction]:
        """Every way that the arrival has; those of equal merit come in the order in which they are to be
        taken."""
        later_ms = self._times.later_chunks_ms(arrival)
        together = self._times.race(arrival)
        in_turn = self._times.race(arrival, in_turn=True) if arrival.together_bytes else together
        ways: list[Prediction] = []
        for cpu_layers in (0, *self._cpu_layers(arrival, together)):
            ways.append(self._at_once(arrival, together, later_ms, cpu_layers))
            if arrival.num_decoding and (held := self._held(arrival, in_turn, later_ms, cpu_layers)):
                ways.append(held)
        if arrival.num_decoding and arrival.beside_wait_ms is not None:
            apart = self._times.race(arrival, beside=True)
            ways += [
                self._beside(arrival, apart, later_ms, cpu_layers)
                for cpu_layers in (0, *self._cpu_layers(arrival, apart))
            ]
        if self._can_spare(arrival):
            ways += self._spared(arrival)
        ways.append(self._on_demand(arrival, in_turn, later_ms))
        return ways

    def fewest_cpu_layers(self, arrival: Arrival) -> int:
        """The leading layers for CPU workers with which the link is never waited for."""
        race = self._times.race(arrival)
        fewest = race.fewest_cpu_layers()
        return fewest and next(end for end in _piece_ends(race.num_layers) if end >= fewest)

    def assisted(self, arrival: Arrival) -> Decision:
        """Of the ways in the batch, that with the fewest layers for CPU workers with which the link is never
        waited for; or that without a load, where that may be and costs no more."""
        race, later_ms = self._times.race(arrival), self._times.later_chunks_ms(arrival)
        loaded = self._at_once(arrival, race, later_ms, self.fewest_cpu_layers(arrival))
        if self._can_spare(arrival):
            spared = self._spared_at_once(arrival, race)
            if self.cost_ms(arrival, spared) <= _EQUAL_COST * self.cost_ms(arrival, loaded):
                return spared.decision
        return loaded.decision

    def best(self, arrival: Arrival) -> Prediction:
        """The way to take; see the module's text. Of equal ones, what moves nothing, and then what costs the
        others least."""
        ways = self.ways(arrival)
        most = _EQUAL_COST * min(self.cost_ms(arrival, way) for way in ways)
        return min(
            (way for way in ways if self.cost_ms(arrival, way) <= most),
            key=lambda way: (not way.decision.spares_load, way.stall_ms),
        )

    def cost_ms(self, arrival: Arrival, way: Prediction) -> float:
        """What a way costs the arrival, those who run beside it, and who comes next on the link."""
        others_ms = arrival.num_decoding * way.stall_ms
        if arrival.is_link_wanted and not way.decision.spares_load:
            others_ms += self._times.copy_ms(arrival)
        return way.ttft_ms + _OTHERS_SHARE * others_ms

    # The ways

    def _cpu_layers(self, arrival: Arrival, race: LayerRace) -> Sequence[int]:
        """How many leading layers CPU workers may compute: none more than what keeps the link from being
        waited for."""
        fewest = race.fewest_cpu_layers()
        if not fewest or not self.can_assist(arrival):
            return ()
        ends = _piece_ends(race.num_layers)
        return ends[: 1 + next(index for index, end in enumerate(ends) if end >= fewest)]

    def _at_once(self, arrival: Arrival, race: LayerRace, later_ms: float, cpu_layers: int) -> Prediction:
        ttft_ms = race.prefill_ms(cpu_layers) + later_ms
        return Prediction(
            _decision(cpu_layers),
            ttft_ms,
            race.stall_ms(cpu_layers),
            self._complete_ms(arrival, race, cpu_layers, ttft_ms),
        )

    def _held(self, arrival: Arrival, race: LayerRace, later_ms: float, cpu_layers: int) -> Prediction | None:
        """A step begins some time within a decoding step after the hold: half of one later on average, so
        much is taken off the hold. What then comes too early waits, what comes too late is late: an eighth of
        a decoding step each, on average."""
        boundary_ms = self._times.boundary_ms(arrival)
        hold_ms = race.hold_ms(cpu_layers) - boundary_ms
        if hold_ms <= 0:
            return None
        off_ms, computing_ms = boundary_ms / 4, race.computing_ms(cpu_layers)
        ttft_ms = race.hold_ms(cpu_layers) + computing_ms + off_ms + later_ms
        return Prediction(
            _decision(cpu_layers, hold_ms=hold_ms),
            ttft_ms,
            computing_ms - race.num_layers * race.gpu_layer_ms + off_ms,
            self._complete_ms(arrival, race, cpu_layers, ttft_ms),
        )

    def _beside(self, arrival: Arrival, race: LayerRace, later_ms: float, cpu_layers: int) -> Prediction:
        """What comes while the step beside waits for its turn is there when it begins. Others lose what the
        GPU needs for a pass of its own, beyond what the prompt would have added to theirs."""
        wait_ms, step_ms = arrival.beside_wait_ms or 0.0, self.profile.prefill.step_ms
        begun = replace(race, copies_begin_ms=race.copies_begin_ms - wait_ms)
        beside_ms, num_tokens = begun.prefill_ms(cpu_layers), self._times.first_tokens(arrival)
        added_ms = step_ms(num_tokens + arrival.batch_tokens) - self.profile.decode.step_ms(
            arrival.num_decoding
        )
        # That it has ended is seen between two of the others' steps.
        ttft_ms = wait_ms + beside_ms + self._times.boundary_ms(arrival) + later_ms
        return Prediction(
            _decision(cpu_layers, beside_ms=beside_ms),
            ttft_ms,
            max(0.0, step_ms(num_tokens) - max(0.0, added_ms)),
            self._complete_ms(arrival, race, cpu_layers, ttft_ms),
        )

    def _can_spare(self, arrival: Arrival) -> bool:
        """Whether its adapter need not be loaded, where that would take anything."""
        return arrival.may_spare_load and self.can_assist(arrival) and self.profile.link is not None

    def _spared(self, arrival: Arrival) -> Sequence[Prediction]:
        """CPU workers compute all layers of all chunks, and nothing is copied."""
        ways = [self._spared_at_once(arrival, self._times.race(arrival))]
        if arrival.num_decoding and arrival.beside_wait_ms is not None:
            apart, later_cpu_ms = self._times.race(arrival, beside=True), self._times.later_cpu_ms(arrival)
            later_ms = self._times.later_chunks_ms(arrival) + later_cpu_ms
            beside = self._beside(arrival, apart, later_ms, apart.num_layers)
            ways.append(replace(beside, decision=replace(beside.decision, spares_load=True)))
        return ways

    def _spared_at_once(self, arrival: Arrival, race: LayerRace) -> Prediction:
        later_cpu_ms = self._times.later_cpu_ms(arrival)
        at_once = self._at_once(
            arrival, race, self._times.later_chunks_ms(arrival) + later_cpu_ms, race.num_layers
        )
        return replace(
            at_once,
            decision=replace(at_once.decision, spares_load=True),
            stall_ms=at_once.stall_ms + later_cpu_ms,
            complete_ms=at_once.ttft_ms,
        )

    def _complete_ms(self, arrival: Arrival, race: LayerRace, cpu_layers: int, ttft_ms: float) -> float:
        """With one token to answer, the layers of the CPU workers are never needed on the device."""
        if cpu_layers and arrival.max_output_tokens == 1:
            return ttft_ms
        return max(ttft_ms, race.complete_ms(cpu_layers))

    def _on_demand(self, arrival: Arrival, race: LayerRace, later_ms: float) -> Prediction:
        """That all has come is seen when a step is planned, which is begun when the one before it ends."""
        prefill_ms, ahead_ms = race.num_layers * race.gpu_layer_ms, self._times.ahead_ms(arrival)
        begin_ms = max(ahead_ms, race.complete_ms(0) + ahead_ms + self._times.boundary_ms(arrival))
        ttft_ms = begin_ms + prefill_ms + later_ms
        return Prediction(Decision(ColdStart.ON_DEMAND), ttft_ms, 0.0, ttft_ms)
