"""The break-even model: what every way of a cold start would cost an arrival and those who run beside it.

Pure: a machine's profile and an arrival's facts in, predictions out; tens of microseconds for one arrival.

Which way wins (`best`). A cold start must delay neither its own first token nor the others' next ones, and
often cannot have both: what is smallest is the sum of its TTFT and half of what all the others lose together.
Without others, TTFT alone counts.

The ways differ in how many leading layers CPU workers compute, and in whether the request prefills at once
in the batch; or beside it, so that nobody waits for its copies or its CPU workers, and the base's weights are
read once more (`Decision.beside_ms`); or is held until the rest of its copies hides under its prefill
(`Decision.hold_ms`): that delays nobody, and its own TTFT is the same as if it had waited for the link.
Layers are given to CPU workers in the pieces in which steps are computed (`transfer.LayerOrder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.coldstart.arrival import Arrival, Decision
from caraserve_cli.coldstart.layer_race import LayerRace
from caraserve_cli.core import ColdStart
from caraserve_cli.perf.adapter_ops import AdapterOp, adapter_ops
from caraserve_cli.perf.batch_load import BatchLoad
from caraserve_cli.perf.cpu_ops import cpu_ops_ms
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.step_model import StepModel

# What a millisecond counts that one of the others loses, beside one of the arrival's TTFT. H100, Llama-2-7B's
# shape, 9 cold arrivals a second, 16 tokens, rank 64, a link of 3 GB/s emulated, mean TTFT / latency in ms:
# on-demand 80 / 830; with 0.5 / 1.0 here 50 / 852 and 57 / 837.
_OTHERS_SHARE = 0.5
# How much longer the base takes for a prompt beside steps that decode: both read all of its weights. Chosen,
# not measured.
SHARED_DEVICE = 2.0
# Costs that differ by less are equal: a measured model does not know better.
_EQUAL_COST = 1.01


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a way would give.

    Attributes:
        decision: the way.
        ttft_ms: the arrival's, from when the step could begin that is planned now.
        stall_ms: how much longer its first step lasts for the others in it than with the adapter on the
            device.
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
        self._steps = StepModel.of(profile, is_padded=is_padded, max_batch_tokens=prefill_chunk_tokens)

    def emulated(self, link_gbps: float) -> BreakEven:
        """Of the same machine with its link slowed down to `link_gbps` GB/s."""
        return BreakEven(self.profile.emulated(link_gbps), self._chunk_tokens, is_padded=self._is_padded)

    def race(self, arrival: Arrival, *, in_turn: bool = False, beside: bool = False) -> LayerRace:
        """The times of an arrival's first step and of its copies.

        Args:
            arrival: its facts.
            in_turn: all of its adapter comes after what the plan loads before it, and not layer by layer
                together with that.
            beside: its prompt is computed beside the batch.
        """
        profile, link = self.profile, self.profile.link
        together_bytes, ahead_bytes = arrival.together_bytes, arrival.ahead_bytes
        if in_turn:
            together_bytes, ahead_bytes = 0, ahead_bytes + together_bytes
        num_tokens = self._first_tokens(arrival)
        step_ms = profile.prefill.step_ms(num_tokens + (0 if beside else arrival.batch_tokens))
        if not beside:
            step_ms += self._decoding_beside_ms(arrival)
        elif arrival.num_decoding:
            step_ms *= SHARED_DEVICE
        gpu_layer_ms = step_ms / arrival.num_layers
        layer_bytes = (arrival.adapter_bytes + together_bytes) / arrival.num_layers
        ops = self._ops(arrival)
        bytes_per_ms = arrival.link_bytes_per_ms or (link.bytes_per_ms if link else 1.0)
        result_elements = num_tokens * sum(op.group_out_width for op in ops)
        return LayerRace(
            num_layers=arrival.num_layers,
            gpu_layer_ms=gpu_layer_ms,
            cpu_layer_ms=gpu_layer_ms + self._beyond_gpu_ms(arrival, ops, num_tokens, gpu_layer_ms),
            copy_layer_ms=layer_bytes / bytes_per_ms if link else 0.0,
            result_layer_ms=result_elements * profile.dtype_bytes / bytes_per_ms if link else 0.0,
            copies_begin_ms=self._begin_ms(arrival, link, ahead_bytes, bytes_per_ms) if link else 0.0,
        )

    def can_assist(self, arrival: Arrival) -> bool:
        """Whether CPU workers can compute anything of this arrival's prompt."""
        return arrival.can_assist and arrival.free_workers > 0 and self.profile.cpu_lora is not None

    def ways(self, arrival: Arrival) -> Sequence[Prediction]:
        """Every way that the arrival has; those of equal merit come in the order in which they are to be
        taken."""
        later_ms = self._later_chunks_ms(arrival)
        together, in_turn = (self.race(arrival, in_turn=in_turn) for in_turn in (False, True))
        ways: list[Prediction] = []
        for cpu_layers in (0, *self._cpu_layers(arrival, together)):
            ways.append(self._at_once(arrival, together, later_ms, cpu_layers))
            if arrival.num_decoding and (held := self._held(arrival, in_turn, later_ms, cpu_layers)):
                ways.append(held)
        if arrival.num_decoding and arrival.beside_wait_ms is not None:
            apart = self.race(arrival, beside=True)
            ways += [
                self._beside(arrival, apart, later_ms, cpu_layers)
                for cpu_layers in (0, *self._cpu_layers(arrival, apart))
            ]
        ways.append(self._on_demand(arrival, in_turn, later_ms))
        return ways

    def fewest_cpu_layers(self, arrival: Arrival) -> int:
        """The leading layers for CPU workers with which the link is never waited for."""
        race = self.race(arrival)
        fewest = race.fewest_cpu_layers()
        return fewest and next(end for end in _piece_ends(race.num_layers) if end >= fewest)

    def best(self, arrival: Arrival) -> Prediction:
        """The way to take; see the module's text. Of equal ones, what costs the others least."""
        ways = self.ways(arrival)
        most = _EQUAL_COST * min(self.cost_ms(arrival, way) for way in ways)
        return min((way for way in ways if self.cost_ms(arrival, way) <= most), key=lambda way: way.stall_ms)

    def cost_ms(self, arrival: Arrival, way: Prediction) -> float:
        """What a way costs the arrival and those who run beside it."""
        return way.ttft_ms + _OTHERS_SHARE * arrival.num_decoding * way.stall_ms

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
        boundary_ms = self._boundary_ms(arrival)
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
        beside_ms, num_tokens = begun.prefill_ms(cpu_layers), self._first_tokens(arrival)
        added_ms = step_ms(num_tokens + arrival.batch_tokens) - self.profile.decode.step_ms(
            arrival.num_decoding
        )
        # That it has ended is seen between two of the others' steps.
        ttft_ms = wait_ms + beside_ms + self._boundary_ms(arrival) + later_ms
        return Prediction(
            _decision(cpu_layers, beside_ms=beside_ms),
            ttft_ms,
            max(0.0, step_ms(num_tokens) - max(0.0, added_ms)),
            self._complete_ms(arrival, race, cpu_layers, ttft_ms),
        )

    def _complete_ms(self, arrival: Arrival, race: LayerRace, cpu_layers: int, ttft_ms: float) -> float:
        """With one token to answer, the layers of the CPU workers are never needed on the device."""
        if cpu_layers and arrival.max_output_tokens == 1:
            return ttft_ms
        return max(ttft_ms, race.complete_ms(cpu_layers))

    def _on_demand(self, arrival: Arrival, race: LayerRace, later_ms: float) -> Prediction:
        """That all has come is seen when a step is planned, which is begun when the one before it ends."""
        prefill_ms, ahead_ms = race.num_layers * race.gpu_layer_ms, self._ahead_ms(arrival)
        begin_ms = max(ahead_ms, race.complete_ms(0) + ahead_ms + self._boundary_ms(arrival))
        ttft_ms = begin_ms + prefill_ms + later_ms
        return Prediction(Decision(ColdStart.ON_DEMAND), ttft_ms, 0.0, ttft_ms)

    # Their times

    def _first_tokens(self, arrival: Arrival) -> int:
        """Prompt tokens in its first step, in which all copies are waited for."""
        return min(arrival.prompt_tokens, self._chunk_tokens)

    def _later_chunks_ms(self, arrival: Arrival) -> float:
        """The further steps of a long prompt, the same in all ways."""
        left = arrival.prompt_tokens - self._first_tokens(arrival)
        full, rest = divmod(left, self._chunk_tokens)
        step_ms, beside_ms = self.profile.prefill.step_ms, self._decoding_beside_ms(arrival)
        later_ms = full * (step_ms(self._chunk_tokens + arrival.batch_tokens) + beside_ms)
        return later_ms + step_ms(rest + arrival.batch_tokens) + beside_ms if rest else later_ms

    def _decode_ms(self, arrival: Arrival) -> float:
        """A step of those who decode, with their contexts and adapters."""
        return self._steps.decode_ms(
            BatchLoad(arrival.num_decoding, arrival.decoding_ranks, arrival.decoding_kv_tokens)
        )

    def _decoding_beside_ms(self, arrival: Arrival) -> float:
        """What their contexts and adapters add to a step with prompts."""
        return self._decode_ms(arrival) - self.profile.decode.step_ms(arrival.num_decoding)

    def _ahead_ms(self, arrival: Arrival) -> float:
        """How long before a step begins it is planned, and its copies are begun: while the one before it is
        computed."""
        return self._decode_ms(arrival)

    def _begin_ms(self, arrival: Arrival, link: LinkModel, ahead_bytes: int, bytes_per_ms: float) -> float:
        """When the first of its copies begins, after those of `ahead_bytes`."""
        before_ms = arrival.link_backlog_ms + ahead_bytes / bytes_per_ms
        return before_ms + link.latency_ms - self._ahead_ms(arrival)

    def _boundary_ms(self, arrival: Arrival) -> float:
        """From a moment to the next step's begin, on average: half a decoding step."""
        return self._decode_ms(arrival) / 2

    def _ops(self, arrival: Arrival) -> tuple[AdapterOp, ...]:
        rank_bytes = max(1, arrival.lora_rank) * arrival.num_layers * self.profile.dtype_bytes
        return adapter_ops(self.profile.shape, arrival.adapter_bytes // rank_bytes)

    def _beyond_gpu_ms(
        self, arrival: Arrival, ops: Sequence[AdapterOp], num_tokens: int, gpu_layer_ms: float
    ) -> float:
        """How much longer the GPU waits in a layer for the ops of CPU workers than it takes for the base's
        part of these ops, which it computes meanwhile."""
        cpu_lora, tokens_per_worker = self.profile.cpu_lora, self.profile.tokens_per_worker
        if cpu_lora is None:
            return 0.0
        num_free, lora_rank = max(1, arrival.free_workers), max(1, arrival.lora_rank)
        ops_ms = cpu_ops_ms(cpu_lora, ops, num_tokens, lora_rank, num_free, tokens_per_worker)
        return sum(
            max(0.0, op_ms - op.gpu_share * gpu_layer_ms) for op, op_ms in zip(ops, ops_ms, strict=True)
        )
