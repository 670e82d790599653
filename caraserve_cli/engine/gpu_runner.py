"""Executes step plans on a GPU, one step ahead of the host.

A launch writes the step down in pinned memory, queues the copies, the computation and the tokens' way
back, and returns. A sequence's pending token never visits the host before it is used: the next step takes
it from the last one's output on the GPU. Most steps replay CUDA graphs. Where several processes hold the
base, each on a GPU of its own, the first one executes plans, and the others follow it; it chooses the
tokens, which go from its GPU to the others'.

All of it also runs on CPU tensors, through the operators' plain references: slowly, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from contextlib import suppress

import torch
from torch import Tensor

from caraserve_cli.adapters.copy_lane import CopyLane
from caraserve_cli.adapters.extents import aligned_bytes
from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.coldstart.assistant import Assistant, assist_outcome
from caraserve_cli.config import EngineConfig
from caraserve_cli.engine.beside_steps import BesideSteps
from caraserve_cli.engine.chunk_steps import ChunkSteps
from caraserve_cli.engine.decode_steps import DecodeSteps
from caraserve_cli.engine.gpu_adapters import GpuAdapters
from caraserve_cli.engine.gpu_batch import GpuBatch
from caraserve_cli.engine.gpu_parts import GpuParts, on_host, out_of_memory
from caraserve_cli.engine.model_runner import KnownTokens
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_cli.engine.step_sizes import chunk_sizes
from caraserve_cli.engine.tokens_under_way import TokensUnderWay
from caraserve_cli.model.attention import KvCache
from caraserve_cli.model.decoder import Decoder
from caraserve_cli.model.sampler import choose_tokens, needs_lockstep, sample
from caraserve_cli.step_plan import ScheduledChunk, StepPlan


class GpuRunner:
    """The decoder, its KV cache, the device pool, and both kinds of steps.

    Args:
        decoder: the base, on a GPU.
        host_store: where adapters are loaded from, packed.
        config: sizes and limits.
        lane: the adapters' way to the GPU; None for one of its own.
        assistant: CPU workers that compute with cold adapters; None where there are none.

    Attributes:
        adapters: see `Runner`, as `beside`.
    """

    max_in_flight = 2

    def __init__(
        self,
        decoder: Decoder,
        host_store: HostStore,
        config: EngineConfig,
        lane: CopyLane | None = None,
        assistant: Assistant | None = None,
    ) -> None:
        shape, device = decoder.config.shape, decoder.device
        assert host_store.packer is not None, "a pool takes packed adapters"
        self._decoder, self._config = decoder, config
        self._pool = PackedPool(
            shape,
            aligned_bytes(config.adapter_memory_bytes),
            config.max_resident_adapters,
            decoder.dtype,
            device,
            lane,
        )
        parts = GpuParts(
            decoder,
            config,
            KvCache(shape, config.num_kv_blocks, config.kv_block_tokens, decoder.dtype, device),
            decoder.rope.table(config.max_context_tokens),
            self._pool,
            host_store.packer.form,
            torch.zeros(1 + config.max_running, dtype=torch.int64, device=device),
            _num_sms(device),
        )
        self._parts, self._chosen = parts, parts.chosen[1:]
        # The row of each sequence whose token is in `parts.chosen`.
        self._feed_row_of: dict[int, int] = {}
        self._followed: TokensUnderWay | None = None  # the last step that another process has laid out
        self.adapters = GpuAdapters(host_store, self._pool, assistant)
        self._decode_steps = DecodeSteps(parts, self.adapters)
        max_tokens = config.max_batch_tokens
        self._chunk_steps = ChunkSteps(parts, assistant, max_tokens, chunk_sizes(max_tokens))
        self.beside = BesideSteps(parts, assistant)
        self._pool.before_moves = self.beside.come_after

    @torch.inference_mode()
    def warm_up(self, used_groups: frozenset[int], *, beside: bool = False) -> None:
        """Compile the kernels and capture the graphs that are missing, so that no request waits for them;
        those of steps `beside` others too. Between two launches: steps under way have what they read. None
        must be under way beside the others."""
        self._pool.used_groups |= used_groups
        self._decode_steps.warm_up(with_lora=bool(used_groups))
        self._chunk_steps.warm_up(with_lora=bool(used_groups))
        if beside:
            self.beside.warm_up(with_lora=bool(used_groups))

    def drop_graphs(self) -> None:
        """See `StepGraphs.drop`."""
        self._decode_steps.drop_graphs()
        self._chunk_steps.drop_graphs()

    def launch(self, plan: StepPlan) -> TokensUnderWay | KnownTokens:
        """Queue a plan's computation.

        Raises:
            DeviceMemoryError: the GPU's memory does not hold it.
        """
        with suppress(torch.OutOfMemoryError):
            return self._launch(plan)
        if self._chunk_steps.assistance is not None:
            self._chunk_steps.assistance.abandon()
        raise out_of_memory(plan.num_tokens)

    def _launch(self, plan: StepPlan) -> TokensUnderWay | KnownTokens:
        # Before anything else: copies go on while the step before this one is computed.
        self._pool.start_copies()
        return self.compute(self.lay_out(plan))

    def lay_out(self, plan: StepPlan) -> GpuBatch:
        """A plan's chunks as arrays."""
        step = StepBatch.build(plan.chunks, self._config.kv_block_tokens, self._feed_row_of)
        yielding = step.yielding
        in_lockstep = any(needs_lockstep(chunk.sequence.request.sampling) for chunk in yielding)
        return GpuBatch(step, self._parts.rope_variants(step), 0 if in_lockstep else len(yielding))

    @torch.inference_mode()
    def compute(self, batch: GpuBatch) -> TokensUnderWay | KnownTokens:
        """Queue the computation of what was laid out."""
        logits, step = self._queue(batch)
        return self._choose(logits, batch.step.yielding, step)

    @torch.inference_mode()
    def follow(self, batch: GpuBatch) -> None:
        """Queue this process's part of what another one has laid out and chooses the tokens of. As there, no
        more than two steps are under way."""
        _, step = self._queue(batch)
        if batch.num_fed:
            self._decoder.collective.broadcast_(self._chosen[: batch.num_fed])
        if self._followed is not None:
            self._followed.sampled()
            self._pool.transfers.take_stall()  # the first process tells of it
        self._followed = TokensUnderWay((), self._chosen, self._pool, step, None)

    def _queue(self, batch: GpuBatch) -> tuple[Tensor, int]:
        """Queue a step; its logits [yielding chunks, vocabulary], and its number."""
        variants = on_host(batch.rope_variants)
        number = self._pool.note_step(batch.step.device_segments[:, 0])
        if batch.step.is_decode and variants is None:
            self._chunk_steps.assistance = None
            return self._decode_steps.launch(batch.step), number
        return self._chunk_steps.launch(batch.step, variants), number

    def _choose(
        self, logits: Tensor, yielding: SequenceOf[ScheduledChunk], step: int
    ) -> TokensUnderWay | KnownTokens:
        """Choose the tokens, and keep them where the next step finds them."""
        sequences = [chunk.sequence for chunk in yielding]
        assistance = self._chunk_steps.assistance
        self._feed_row_of = {id(sequence): row for row, sequence in enumerate(sequences, 1)}
        if any(needs_lockstep(sequence.request.sampling) for sequence in sequences):
            tokens = list(zip(yielding, sample(logits.float(), sequences), strict=True))
            self._pool.note_ended(step)
            self._pool.transfers.settle()
            return KnownTokens(
                tokens,
                self._pool.transfers.take_copied_ms(),
                outcome=assist_outcome(assistance),
            )
        own = self._chosen[: len(sequences)]
        if any(sequence.request.sampling.temperature > 0 for sequence in sequences):
            own.copy_(choose_tokens(logits.float(), sequences))
        else:
            torch.argmax(logits, dim=-1, out=own)
        if sequences:
            self._decoder.collective.broadcast_(own)
        return TokensUnderWay(yielding, self._chosen, self._pool, step, assistance)


def _num_sms(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
