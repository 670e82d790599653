"""Executes step plans on a GPU, one step ahead of the host.

A launch writes the step down in pinned memory, queues the copies, the computation and the tokens' way back,
and returns. A sequence's pending token never visits the host before it is used: the next step takes it from
the last one's output on the GPU. Steps that only decode replay a CUDA graph.

All of it also runs on CPU tensors, through the operators' plain references: slowly, for tests.
"""

from __future__ import annotations

from collections.abc import Hashable
from collections.abc import Sequence as SequenceOf
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from caraserve_cli.adapters.copy_lane import CopyLane
from caraserve_cli.adapters.extents import aligned_bytes
from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.coldstart.assistant import Assistance, Assistant, AssistedSegment
from caraserve_cli.coldstart.assisted_lora import AssistedLora
from caraserve_cli.config import EngineConfig
from caraserve_cli.core import Request, ScheduledChunk, Sequence, StepPlan, Timings
from caraserve_cli.engine.decode_graphs import DecodeGraphs, padded_size, padded_sizes
from caraserve_cli.engine.gpu_adapters import GpuAdapters
from caraserve_cli.engine.gpu_inputs import GpuInputs
from caraserve_cli.engine.model_runner import KnownTokens
from caraserve_cli.engine.pool_lora import Ints, LoraWay, PoolLora, align_work
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_cli.engine.tokens_under_way import TokensUnderWay
from caraserve_cli.errors import DeviceMemoryError
from caraserve_cli.model.attention import KvCache
from caraserve_cli.model.contexts import LoraContext, NoLora
from caraserve_cli.model.decoder import Decoder
from caraserve_cli.model.rope import BASE_VARIANT
from caraserve_cli.model.sampler import choose_tokens, needs_lockstep, sample
from caraserve_cli.model.triton_attention import ChunkAttention, DecodeAttention, PagedBatch
from caraserve_kernels.paged_decode import MAX_SPLITS, DecodeScratch
from caraserve_kernels.paged_prefill import PrefillTiling, build_prefill_tiles, choose_prefill_tiling

# The prompt that kernels are compiled with; its length is of no account.
WARM_UP_BLOCKS = 4


class GpuRunner:
    """The decoder, its KV cache, the device pool, and the buffers and graphs of steps.

    Args:
        decoder: the base, on a GPU.
        host_store: where adapters are loaded from, packed.
        config: sizes and limits.
        lane: the adapters' way to the GPU; None for one of its own.
        assistant: CPU workers that compute with cold adapters; None where there are none.

    Attributes:
        adapters: see `Runner`.
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
        self._decoder, self._config = decoder, config
        self._assistant = assistant
        self._assistance: Assistance | None = None  # of the step that was launched last
        shape, device = decoder.config.shape, decoder.device
        assert host_store.packer is not None, "a pool takes packed adapters"
        self._form = host_store.packer.form
        self._num_sms = _num_sms(device)
        self._cache = KvCache(shape, config.num_kv_blocks, config.kv_block_tokens, decoder.dtype, device)
        self._pool = PackedPool(
            shape,
            aligned_bytes(config.adapter_memory_bytes),
            config.max_resident_adapters,
            decoder.dtype,
            device,
            lane,
        )
        self.adapters = GpuAdapters(host_store, self._pool, assistant)
        self._decode_inputs, self._decode_lora = self._buffers(config.max_running, decoding=True)
        self._inputs, self._lora = self._buffers(config.max_batch_tokens, decoding=False)
        self._scratch = DecodeScratch.allocate(
            max(config.max_running, MAX_SPLITS * self._num_sms),
            config.max_running,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            device,
        )
        self._graphs = DecodeGraphs(self._decode_logits, device)
        self._logits = torch.empty(config.max_running, shape.vocab_size, dtype=decoder.dtype, device=device)
        # The tokens that the last step chose, and the row of each sequence that has one there.
        self._chosen = torch.zeros(config.max_running, dtype=torch.int64, device=device)
        self._feed_row_of: dict[int, int] = {}

    def _buffers(self, max_tokens: int, *, decoding: bool) -> tuple[GpuInputs, PoolLora]:
        config, device = self._config, self._decoder.device
        max_blocks = -(-config.max_context_tokens // config.kv_block_tokens)
        capacity = PoolLora.work_capacity(max_tokens, config.max_running, decoding=decoding)
        if not decoding:
            capacity = 2 * align_work(capacity)  # for a step that is assisted, lists with and without that
        inputs = GpuInputs(max_tokens, config.max_running, max_blocks, capacity, device)
        lora = PoolLora(self._pool, self._form, inputs.work, max_tokens, self._num_sms, decoding=decoding)
        return inputs, lora

    @torch.inference_mode()
    def warm_up(self, used_groups: frozenset[int]) -> None:
        """Compile the kernels and capture the graphs, so that no request waits for them. Before the first
        request: what the buffers hold then is a batch that sees nothing, and blocks are written before they
        are read."""
        self._pool.used_groups |= used_groups
        for size in padded_sizes(self._config.max_running):
            for way in (None, *self._decode_lora.ways(size)) if used_groups else (None,):
                self._graphs.prepare(size, way)
        block_table = list(range(min(WARM_UP_BLOCKS, self._config.num_kv_blocks)))
        num_tokens = min(len(block_table) * self._config.kv_block_tokens, self._config.max_batch_tokens)
        for adapter_slot in (None, 0) if used_groups else (None,):
            request = Request(id="", line=0, prompt_token_ids=(0,) * num_tokens)
            sequence = Sequence(request, Timings(0.0), [0] * num_tokens, num_tokens, 1)
            sequence.block_table, sequence.adapter_slot = block_table, adapter_slot
            chunk = ScheduledChunk(sequence, 0, num_tokens, yields_token=True)
            self._launch_chunks(StepBatch.build((chunk,), self._config.kv_block_tokens, {}), None)

    def launch(self, plan: StepPlan) -> TokensUnderWay | KnownTokens:
        """Queue a plan's computation.

        Raises:
            DeviceMemoryError: the GPU's memory does not hold it.
        """
        with suppress(torch.OutOfMemoryError):
            return self._launch(plan)
        if self._assistance is not None:
            self._assistance.abandon()
        # Only here, where no traceback holds the step's tensors any more.
        torch.cuda.empty_cache()
        raise DeviceMemoryError(
            f"the GPU's memory does not hold a step of {plan.num_tokens} tokens; "
            "lower --gpu-memory, so that more is left for steps"
        )

    @torch.inference_mode()
    def _launch(self, plan: StepPlan) -> TokensUnderWay | KnownTokens:
        batch = StepBatch.build(plan.chunks, self._config.kv_block_tokens, self._feed_row_of)
        variants = self._rope_variants(batch)
        if batch.is_decode and variants is None:
            logits = self._launch_decode(batch)
        else:
            logits = self._launch_chunks(batch, variants)
        yielding = batch.yielding
        return self._choose(logits[: len(yielding)], yielding)

    def _choose(self, logits: Tensor, yielding: SequenceOf[ScheduledChunk]) -> TokensUnderWay | KnownTokens:
        """Choose the tokens, and keep them where the next step finds them."""
        sequences = [chunk.sequence for chunk in yielding]
        self._feed_row_of = {id(sequence): row for row, sequence in enumerate(sequences)}
        if any(needs_lockstep(sequence.request.sampling) for sequence in sequences):
            tokens = list(zip(yielding, sample(logits.float(), sequences), strict=True))
            self._pool.transfers.settle()
            return KnownTokens(
                tokens,
                self._pool.transfers.take_copied_ms(),
                was_assisted_in_time=self._assistance is None or self._assistance.was_in_time,
            )
        if any(sequence.request.sampling.temperature > 0 for sequence in sequences):
            chosen = choose_tokens(logits.float(), sequences)
        else:
            chosen = logits.argmax(dim=-1)
        self._chosen[: len(sequences)].copy_(chosen)
        return TokensUnderWay(yielding, self._chosen, self._pool.transfers, self._assistance)

    def _rope_variants(self, batch: StepBatch) -> Tensor | None:
        """Each token's variant in host memory; None where all are the base's."""
        rope = self._decoder.rope
        of_chunk = [rope.variant(chunk.sequence.num_prompt_tokens) for chunk in batch.chunks]
        if all(variant == BASE_VARIANT for variant in of_chunk):
            return None
        return torch.from_numpy(np.repeat(of_chunk, np.diff(batch.first_tokens)))

    # Steps that only decode

    def _launch_decode(self, batch: StepBatch) -> Tensor:
        num_sequences = len(batch.chunks)
        size = padded_size(num_sequences, self._config.max_running)
        self._assistance = None
        lora, num_work = self._write_work(
            self._decode_inputs.begin(), self._decode_lora, batch.segments, size
        )
        self._decode_inputs.send(batch, size - num_sequences, None, num_work)
        self.adapters.begin_copies()
        for gate in self._pool.gates(batch.segments[:, 0].tolist()):
            gate.wait()
        return self._graphs.run(size, lora)

    def _decode_logits(self, size: int, lora: Hashable) -> Tensor:
        """[size, vocabulary], from the decoding steps' buffers; `lora` is a LoraWay, None without LoRA."""
        inputs = self._decode_inputs
        fields = inputs.fields
        batch = PagedBatch(
            self._cache,
            self._decoder.config.sliding_window,
            self._decoder.config.rms_norm_eps,
            self._decoder.rope.rotation(fields.positions[:size]),
            fields.slot_mapping[:size],
            inputs.block_tables[:size],
            fields.context_lens[:size],
        )
        attention = DecodeAttention(batch, self._scratch, self._num_sms)
        context = self._decode_lora.context(lora) if isinstance(lora, LoraWay) else NoLora()
        hidden = self._decoder.forward(self._token_ids(inputs, size), attention, context)
        return self._logits[:size].copy_(self._decoder.logits(hidden))

    # Any other steps

    def _launch_chunks(self, batch: StepBatch, variants: Tensor | None) -> Tensor:
        """Logits [yielding chunks, vocabulary]."""
        tiling, tiles = self._cut_chunks(batch)
        assistance = self._assistance = self._assist(batch)
        work = self._inputs.begin()
        late, num_late = self._write_work(work, self._lora, batch.segments, batch.num_tokens)
        early, first_early, num_work = late, 0, num_late
        unassisted = batch.segments[batch.num_assisted_segments :]
        if assistance is not None:
            first_early = align_work(num_late)
            early, num_early = self._write_work(work[first_early:], self._lora, unassisted, batch.num_tokens)
            num_work = first_early + num_early
        self._inputs.send(batch, 0, tiles, num_work)
        # Not before: one engine makes all copies to the device, in the order in which they are queued, and
        # the step would wait for the last layers of all adapters before its first.
        self._pool.start_copies()
        gates = self._pool.gates(batch.segments[:, 0].tolist())
        gates_early = self._pool.gates(unassisted[:, 0].tolist())
        fields, num_tokens, num_sequences = self._inputs.fields, batch.num_tokens, len(batch.chunks)
        paged = PagedBatch(
            self._cache,
            self._decoder.config.sliding_window,
            self._decoder.config.rms_norm_eps,
            self._decoder.rope.rotation(fields.positions[:num_tokens], variants),
            fields.slot_mapping[:num_tokens],
            self._inputs.block_tables[:num_sequences],
            fields.context_lens[:num_sequences],
        )
        attention = ChunkAttention(
            paged, fields.first_tokens[: num_sequences + 1], fields.tiles[: len(tiles)], tiling
        )
        context: LoraContext = NoLora() if late is None else self._lora.context(late, gates)
        if assistance is not None:
            before = NoLora() if early is None else self._lora.context(early, gates_early, first_early)
            context = AssistedLora(before, context, assistance, batch.num_assisted_tokens)
        hidden = self._decoder.forward(self._token_ids(self._inputs, num_tokens), attention, context)
        self._pool.transfers.begin()
        last_tokens = fields.last_tokens[: batch.last_tokens.shape[0]]
        return self._decoder.logits(hidden.index_select(0, last_tokens))

    def _assist(self, batch: StepBatch) -> Assistance | None:
        """Hand the chunks that are to be assisted to the workers; None if there are none."""
        if self._assistant is None or not batch.cpu_layers:
            return None
        assisted = [
            AssistedSegment(*segment) for segment in batch.segments[: batch.num_assisted_segments].tolist()
        ]
        return self._assistant.begin(assisted, batch.num_assisted_tokens, batch.cpu_layers)

    def _cut_chunks(
        self, batch: StepBatch
    ) -> tuple[PrefillTiling, np.ndarray[tuple[int, int], np.dtype[np.int32]]]:
        shape = self._decoder.config.shape
        num_queries = np.diff(batch.first_tokens).tolist()
        group = shape.num_heads // shape.num_kv_heads
        tiling = choose_prefill_tiling(max(num_queries), group, shape.head_dim, self._decoder.dtype)
        tiles = build_prefill_tiles(num_queries, batch.context_lens.tolist(), tiling.query_tokens(group))
        return tiling, np.array(tiles, np.int32)

    # Both

    def _token_ids(self, inputs: GpuInputs, num_tokens: int) -> Tensor:
        """[tokens]: those the host knew, and those that the last step chose."""
        feed_rows = inputs.fields.feed_rows[:num_tokens]
        fed = self._chosen[feed_rows.clamp(min=0)]
        return torch.where(feed_rows >= 0, fed, inputs.fields.token_ids[:num_tokens])

    def _write_work(
        self, work: Ints, lora: PoolLora, segments: Ints, num_tokens: int
    ) -> tuple[LoraWay | None, int]:
        """Write a step's lists; how its LoRA is computed, and how much of the work buffer they take."""
        if not segments.shape[0]:
            return None, 0
        way = lora.choose(segments, num_tokens)
        return way, lora.write_work(work, segments, way)


def _num_sms(device: torch.device) -> int:
    """Multiprocessors of a GPU."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
