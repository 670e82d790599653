"""How long a planned step takes on a simulated replica: the fitted models of its machine, the copies that it
waits for, and what CPU workers compute of it. They are always in time here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from caraserve_cli.coldstart.arrival_times import SHARED_DEVICE
from caraserve_cli.coldstart.layer_race import LayerRace
from caraserve_cli.core import AdapterInfo, ColdStart, Sequence
from caraserve_cli.perf.adapter_ops import adapter_ops
from caraserve_cli.perf.batch_load import NO_RANKS, RankSums
from caraserve_cli.perf.cpu_ops import cpu_ops_ms
from caraserve_cli.perf.mixed import MixedStep
from caraserve_cli.perf.step_correction import NO_CORRECTION
from caraserve_cli.perf.step_load import StepKind, StepLoad
from caraserve_cli.perf.step_predictor import StepPredictor
from caraserve_cli.placement.replica_facts import ReplicaFacts
from caraserve_cli.simulation.simulated_depot import SimulatedDepot
from caraserve_cli.simulation.steps_ahead import BesideStep
from caraserve_cli.step_plan import ScheduledChunk, StepPlan


class DecodeTimes(NamedTuple):
    """Of steps that decode for the same requests, one after the other: what the first one is of, its
    milliseconds, and how much longer each further one takes."""

    load: StepLoad
    first_ms: float
    growth_ms: float


class StepTimes:
    """The times of one replica's steps.

    Args:
        replica: its models.
        depot: where its adapters are.
        predictor: of its steps, by which it plans; it is told of all of them.
    """

    def __init__(self, replica: ReplicaFacts, depot: SimulatedDepot, predictor: StepPredictor) -> None:
        self._replica, self._depot, self._predictor = replica, depot, predictor
        self._profile = replica.profile
        self._model = replica.step_model
        self._num_layers = replica.profile.shape.num_layers
        decode, prompts = self._model.corrections
        self._kv_token_ms = self._model.kv_token_ms * decode.times + decode.kv_token_ms
        # What a profile knows of steps beyond the model that plans go by. A model that steps have corrected
        # has all of that in it.
        kernel, profile = self._model.lora_kernel, self._profile
        is_measured = kernel is None or not kernel.is_padded
        self._decode_lora = profile.decode_lora if is_measured and decode is NO_CORRECTION else None
        self._mixed = profile.mixed if is_measured and prompts is NO_CORRECTION else None

    def _teach(self, load: StepLoad, step_ms: float) -> None:
        """Steps correct what plans go by, as in an engine; there is nothing to learn where that is all that
        is known of them."""
        if self._decode_lora is not None or self._mixed is not None:
            self._predictor.learn(self._predictor.predict(load), step_ms)

    def decode_ms(self, running: Iterable[Sequence], adapters: Mapping[str, AdapterInfo]) -> DecodeTimes:
        """Of the next step, which decodes for all that run: milliseconds, and how much longer each further
        one takes than the one before it."""
        num_requests = kv_tokens = 0
        names: set[str] = set()
        for sequence in running:
            num_requests += 1
            kv_tokens += sequence.num_computed_tokens + 1
            if sequence.request.adapter is not None:
                names.add(sequence.request.adapter)
        load = StepLoad(num_requests, 0, _rank_sums(names, adapters), kv_tokens)
        return DecodeTimes(load, self._computing_ms(load), self._kv_token_ms * num_requests)

    def teach_decoding(self, times: DecodeTimes, num_steps: int) -> None:
        """So many such steps were done: each is learned from, as if it had been planned alone."""
        if self._decode_lora is None and self._mixed is None:
            return
        load = times.load
        for step in range(num_steps):
            grown = load._replace(kv_tokens=load.kv_tokens + step * load.num_decoding)
            self._teach(grown, times.first_ms + step * times.growth_ms)

    def step_ms(self, plan: StepPlan, adapters: Mapping[str, AdapterInfo], begin_ms: float) -> float:
        """Milliseconds of a planned step, whose copies the depot has begun; from `begin_ms`, what it stands
        still for included."""
        prompt_tokens = num_decoding = kv_tokens = 0
        names: set[str] = set()
        cold: list[ScheduledChunk] = []
        for chunk in plan.chunks:
            sequence = chunk.sequence
            if chunk.start >= sequence.num_prompt_tokens and chunk.num_tokens == 1:
                num_decoding += 1
                kv_tokens += chunk.start + 1
            else:
                prompt_tokens += chunk.num_tokens
            if chunk.lent_slot is not None:
                cold.append(chunk)
            elif sequence.adapter_slot is not None:
                assert sequence.request.adapter is not None
                names.add(sequence.request.adapter)
                if self._depot.coming(sequence.adapter_slot) is not None:
                    cold.append(chunk)
        load = StepLoad(num_decoding, prompt_tokens, _rank_sums(names, adapters), kv_tokens)
        computing_ms = self._computing_ms(load)
        self._teach(load, computing_ms)
        return self._with_cold(cold, adapters, computing_ms, begin_ms) if cold else computing_ms

    def _computing_ms(self, load: StepLoad) -> float:
        """Without waiting for anything."""
        model = self._model
        if load.prompt_tokens and self._mixed is not None:
            step = MixedStep(load.prompt_tokens, load.num_decoding, load.kv_tokens, load.ranks)
            if load.num_decoding:
                return self._mixed.step_ms(step)
            return model.step_ms(load._replace(ranks=NO_RANKS)) + self._mixed.added_ms(step)
        if load.kind is StepKind.DECODE and self._decode_lora is not None:
            base_ms = model.decode_ms(load.decoding._replace(ranks=NO_RANKS))
            return base_ms + self._decode_lora.added_ms(load.decoding)
        return model.step_ms(load)

    def beside(
        self,
        chunks: tuple[ScheduledChunk, ...],
        adapters: Mapping[str, AdapterInfo],
        begin_ms: float,
        *,
        is_shared: bool,
    ) -> BesideStep:
        """A step that is computed beside the others from `begin_ms` on; it and they are `is_shared` the
        device while it computes, and none of the time in which it waits for copies or CPU workers."""
        names = {
            name
            for chunk in chunks
            if chunk.lent_slot is None and (name := chunk.sequence.request.adapter) is not None
        }
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        alone_ms = self._computing_ms(StepLoad(0, num_tokens, _rank_sums(names, adapters)))
        computing_ms = SHARED_DEVICE * alone_ms if is_shared else alone_ms
        step_ms = self._with_cold(chunks, adapters, computing_ms, begin_ms)
        return BesideStep(chunks, begin_ms, begin_ms + step_ms, alone_ms / step_ms)

    def _with_cold(
        self,
        cold: Iterable[ScheduledChunk],
        adapters: Mapping[str, AdapterInfo],
        computing_ms: float,
        begin_ms: float,
    ) -> float:
        """With chunks whose adapters are on their way, or lent: every layer waits for whichever of them, and
        of the results of CPU workers, comes last."""
        gpu_layer_ms = computing_ms / self._num_layers
        cpu_ms = {chunk: self._beyond_gpu_ms(chunk, adapters, gpu_layer_ms) for chunk in cold}
        cpu_layer_ms = gpu_layer_ms + sum(cpu_ms.values())
        step_ms = computing_ms
        for chunk in cpu_ms:
            if chunk.lent_slot is not None:
                step_ms = max(step_ms, self._num_layers * cpu_layer_ms)
                self._depot.keep_link(self._num_layers * self._result_ms(chunk, adapters))
                continue
            slot = chunk.sequence.adapter_slot
            assert slot is not None
            coming = self._depot.coming(slot)
            if coming is None:
                continue
            if chunk.sequence.cold_start is ColdStart.ON_DEMAND_BLOCKING:
                step_ms = max(step_ms, coming.ready_ms - begin_ms + computing_ms)
                continue
            result_ms = self._result_ms(chunk, adapters) if chunk.cpu_layers else 0.0
            race = LayerRace(
                num_layers=self._num_layers,
                gpu_layer_ms=gpu_layer_ms,
                cpu_layer_ms=cpu_layer_ms,
                copy_layer_ms=coming.copy_ms / self._num_layers,
                result_layer_ms=result_ms,
                copies_begin_ms=coming.begin_ms - begin_ms,
            )
            step_ms = max(step_ms, race.prefill_ms(chunk.cpu_layers))
            if chunk.cpu_layers:
                self._depot.delay(slot, chunk.cpu_layers * result_ms)
        return step_ms

    def _beyond_gpu_ms(
        self, chunk: ScheduledChunk, adapters: Mapping[str, AdapterInfo], gpu_layer_ms: float
    ) -> float:
        """What CPU workers add to a layer that they compute of a chunk."""
        if not chunk.cpu_layers or self._profile.cpu_lora is None:
            return 0.0
        info = self._info(chunk, adapters)
        lora_rank = max(1, info.lora_rank)
        ops = adapter_ops(self._profile.shape, self._row_elements(info))
        ops_ms = cpu_ops_ms(
            self._profile.cpu_lora,
            ops,
            chunk.num_tokens,
            lora_rank,
            self._replica.num_cpu_workers,
            self._profile.tokens_per_worker,
        )
        return sum(
            max(0.0, op_ms - op.gpu_share * gpu_layer_ms) for op, op_ms in zip(ops, ops_ms, strict=True)
        )

    def _result_ms(self, chunk: ScheduledChunk, adapters: Mapping[str, AdapterInfo]) -> float:
        """What the link needs for a layer's results of CPU workers."""
        if self._profile.link is None:
            return 0.0
        ops = adapter_ops(self._profile.shape, self._row_elements(self._info(chunk, adapters)))
        num_elements = chunk.num_tokens * sum(op.group_out_width for op in ops)
        return num_elements * self._profile.dtype_bytes / self._profile.link.bytes_per_ms

    def _info(self, chunk: ScheduledChunk, adapters: Mapping[str, AdapterInfo]) -> AdapterInfo:
        assert chunk.sequence.request.adapter is not None
        return adapters[chunk.sequence.request.adapter]

    def _row_elements(self, info: AdapterInfo) -> int:
        """Of a layer, for each rank."""
        return info.num_bytes // (max(1, info.lora_rank) * self._num_layers * self._profile.dtype_bytes)


def _rank_sums(names: Iterable[str], adapters: Mapping[str, AdapterInfo]) -> RankSums[int]:
    """Of distinct adapters: kernels read each one's weights once."""
    lora_ranks = [adapters[name].lora_rank for name in names]
    return RankSums(len(lora_ranks), sum(lora_ranks), max(lora_ranks, default=0))
