"""What a cold arrival's steps, copies and CPU workers take on one machine, however it is treated."""

from __future__ import annotations

from collections.abc import Sequence

from caraserve_cli.coldstart.arrival import Arrival
from caraserve_cli.coldstart.layer_race import LayerRace
from caraserve_cli.perf.adapter_ops import AdapterOp, adapter_ops
from caraserve_cli.perf.batch_load import BatchLoad
from caraserve_cli.perf.cpu_ops import cpu_ops_ms
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.perf.profile import MachineProfile
from caraserve_cli.perf.step_model import StepModel

# How much longer the base takes for a prompt beside steps that decode: both read all of its weights. Chosen,
# not measured.
SHARED_DEVICE = 2.0


class ArrivalTimes:
    """Times of one machine.

    Args:
        profile: of the machine and base.
        prefill_chunk_tokens: the most prompt tokens of one request in one step.
        is_padded: which LoRA kernel runs there.
    """

    def __init__(self, profile: MachineProfile, prefill_chunk_tokens: int, *, is_padded: bool) -> None:
        self.profile, self._chunk_tokens = profile, prefill_chunk_tokens
        self._steps = StepModel.of(profile, is_padded=is_padded, max_batch_tokens=prefill_chunk_tokens)

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
        num_tokens = self.first_tokens(arrival)
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

    def first_tokens(self, arrival: Arrival) -> int:
        """Prompt tokens in its first step, in which all copies are waited for."""
        return min(arrival.prompt_tokens, self._chunk_tokens)

    def later_chunks_ms(self, arrival: Arrival) -> float:
        """The further steps of a long prompt, without what CPU workers add to them if its adapter is not
        loaded: the same in all ways."""
        full, rest = self._later_chunks(arrival)
        step_ms, beside_ms = self.profile.prefill.step_ms, self._decoding_beside_ms(arrival)
        later_ms = full * (step_ms(self._chunk_tokens + arrival.batch_tokens) + beside_ms)
        return later_ms + step_ms(rest + arrival.batch_tokens) + beside_ms if rest else later_ms

    def _later_chunks(self, arrival: Arrival) -> tuple[int, int]:
        """How many whole chunks come after a prompt's first one, and the tokens of the one after these."""
        return divmod(arrival.prompt_tokens - self.first_tokens(arrival), self._chunk_tokens)

    def later_cpu_ms(self, arrival: Arrival) -> float:
        """What CPU workers add to the further steps of a long prompt, of which they compute all layers."""
        (full, rest), ops = self._later_chunks(arrival), self._ops(arrival)

        def beyond_ms(num_tokens: int) -> float:
            step_ms = self.profile.prefill.step_ms(num_tokens + arrival.batch_tokens)
            gpu_layer_ms = step_ms / arrival.num_layers
            return arrival.num_layers * self._beyond_gpu_ms(arrival, ops, num_tokens, gpu_layer_ms)

        later_ms = full * beyond_ms(self._chunk_tokens) if full else 0.0
        return later_ms + beyond_ms(rest) if rest else later_ms

    def copy_ms(self, arrival: Arrival) -> float:
        """How long its adapter's copies keep the link."""
        link = self.profile.link
        if link is None:
            return 0.0
        return arrival.adapter_bytes / (arrival.link_bytes_per_ms or link.bytes_per_ms)

    def _decode_ms(self, arrival: Arrival) -> float:
        """A step of those who decode, with their contexts and adapters."""
        return self._steps.decode_ms(
            BatchLoad(arrival.num_decoding, arrival.decoding_ranks, arrival.decoding_kv_tokens)
        )

    def _decoding_beside_ms(self, arrival: Arrival) -> float:
        """What their contexts and adapters add to a step with prompts."""
        return self._decode_ms(arrival) - self.profile.decode.step_ms(arrival.num_decoding)

    def ahead_ms(self, arrival: Arrival) -> float:
        """How long before a step begins it is planned, and its copies are begun: while the one before it is
        computed."""
        return self._decode_ms(arrival)

    def _begin_ms(self, arrival: Arrival, link: LinkModel, ahead_bytes: int, bytes_per_ms: float) -> float:
        """When the first of its copies begins, after those of `ahead_bytes`."""
        before_ms = arrival.link_backlog_ms + ahead_bytes / bytes_per_ms
        return before_ms + link.latency_ms - self.ahead_ms(arrival)

    def boundary_ms(self, arrival: Arrival) -> float:
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
