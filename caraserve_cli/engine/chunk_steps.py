"""Steps with prompts in them: their inputs, their LoRA, their graphs, and what CPU workers do of them.

Most replay CUDA graphs, cut where layers of cold adapters are waited for. Launched kernel by kernel are steps
of many tokens, for which the host is fast enough, those that CPU workers assist, whose kernels are told
numbers that only grow, and those with rotary frequencies of their own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from caraserve_cli.adapters.transfer import LayerOrder, Transfer
from caraserve_cli.coldstart.assistant import Assistance, Assistant, AssistedSegment
from caraserve_cli.coldstart.assisted_lora import AssistedLora
from caraserve_cli.engine.gpu_parts import GpuParts, write_work
from caraserve_cli.engine.pool_lora import Ints, LoraWay, PoolLora, align_work
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_cli.engine.step_graphs import StepGraphs
from caraserve_cli.engine.step_sizes import MAX_CHUNK_TOKENS, chunk_size, chunk_sizes
from caraserve_cli.model.contexts import LoraContext, NoLora
from caraserve_cli.model.triton_attention import ChunkAttention
from caraserve_kernels.paged_prefill import PrefillTiling, build_prefill_tiles, choose_prefill_tiling


class ChunkSteps:
    """Launches them.

    Args:
        parts: of the runner.
        assistant: CPU workers that compute with cold adapters; None where there are none.

    Attributes:
        assistance: of CPU workers in the step that was launched last; None for none.
    """

    def __init__(self, parts: GpuParts, assistant: Assistant | None) -> None:
        self._parts, self._assistant = parts, assistant
        self.assistance: Assistance | None = None
        config, shape, device = parts.config, parts.decoder.config.shape, parts.device
        max_tokens = config.max_batch_tokens
        capacity = PoolLora.work_capacity(max_tokens, config.max_running, decoding=False)
        # For a step that is assisted, lists with and without that.
        self._inputs = parts.make_inputs(max_tokens, 2 * align_work(capacity))
        self._lora = parts.make_lora(self._inputs, max_tokens, decoding=False)
        self._layer_ends = [end for _, end in LayerOrder().groups(shape.num_layers)]
        self._hidden = torch.empty(
            min(max_tokens, MAX_CHUNK_TOKENS), shape.hidden_size, dtype=parts.decoder.dtype, device=device
        )
        self._graphs = StepGraphs(self._compute, len(self._layer_ends), device)

    def warm_up(self, *, with_lora: bool) -> None:
        """Compile the kernels and capture the graphs."""
        for size in chunk_sizes(self._parts.config.max_batch_tokens):
            for way in (None, *self._lora.ways(size)) if with_lora else (None,):
                self._graphs.prepare(size, way)

    def launch(self, batch: StepBatch, variants: Tensor | None) -> Tensor:
        """Queue a step; its logits [yielding chunks, vocabulary]. `variants` are each token's rotary
        frequencies in host memory, None for the base's."""
        self.assistance = self._assist(batch)
        size = chunk_size(batch.num_tokens, self._parts.config.max_batch_tokens)
        if size is None or variants is not None or self.assistance is not None:
            hidden = self._launch_kernels(batch, variants)
        else:
            hidden = self._replay(batch, size)
        self._parts.pool.transfers.begin()
        last_tokens = self._inputs.fields.last_tokens[: batch.last_tokens.shape[0]]
        return self._parts.decoder.logits(hidden.index_select(0, last_tokens))

    # By graphs

    def _replay(self, batch: StepBatch, size: int) -> Tensor:
        tiles = np.full((size, 2), -1, np.int32)
        found = self._cut(batch, self._tiling(size))
        tiles[: len(found)] = found
        way, num_work = write_work(self._inputs.begin(), self._lora, batch.segments, size)
        self._inputs.send(batch, size - batch.num_tokens, tiles, num_work)
        gates = self._start_copies(batch.segments)
        layers = [range(first, end) for first, end in pairwise((0, *self._layer_ends))]

        def wait(piece: int) -> None:
            for layer in layers[piece]:
                for gate in gates:
                    gate.wait_for_layer(layer)

        self._graphs.run(size, way, wait)
        return self._hidden[:size]

    def _compute(self, size: int, way: Hashable) -> Iterator[None]:
        """`way` is a LoraWay, None without LoRA. There may be as many sequences as tokens."""
        parts, fields = self._parts, self._inputs.fields
        num_sequences = parts.config.max_running
        attention = ChunkAttention(
            parts.paged_batch(self._inputs, size, num_sequences),
            fields.first_tokens,
            fields.tiles[:size],
            self._tiling(size),
        )
        context = self._lora.context(way) if isinstance(way, LoraWay) else NoLora()
        token_ids = parts.token_ids(self._inputs, size)
        pieces = parts.decoder.pieces(token_ids, attention, context, self._layer_ends)
        for end, hidden in zip(self._layer_ends, pieces, strict=True):
            if end == self._layer_ends[-1]:
                self._hidden[:size].copy_(hidden)
            yield

    # Kernel by kernel

    def _launch_kernels(self, batch: StepBatch, variants: Tensor | None) -> Tensor:
        parts, assistance = self._parts, self.assistance
        num_tokens, num_sequences = batch.num_tokens, len(batch.chunks)
        tiling = self._tiling(int(np.diff(batch.first_tokens).max()))
        tiles = self._cut(batch, tiling)
        work = self._inputs.begin()
        late, num_late = write_work(work, self._lora, batch.segments, num_tokens)
        early, first_early, num_work = late, 0, num_late
        unassisted = batch.segments[batch.num_assisted_segments :]
        if assistance is not None:
            first_early = align_work(num_late)
            early, num_early = write_work(work[first_early:], self._lora, unassisted, num_tokens)
            num_work = first_early + num_early
        self._inputs.send(batch, 0, tiles, num_work)
        gates = self._start_copies(batch.segments)
        fields = self._inputs.fields
        attention = ChunkAttention(
            parts.paged_batch(self._inputs, num_tokens, num_sequences, variants),
            fields.first_tokens[: num_sequences + 1],
            fields.tiles[: len(tiles)],
            tiling,
        )
        context: LoraContext = NoLora() if late is None else self._lora.context(late, gates)
        if assistance is not None:
            gates_early = parts.pool.gates(unassisted[:, 0].tolist())
            before = NoLora() if early is None else self._lora.context(early, gates_early, first_early)
            context = AssistedLora(before, context, assistance, batch.num_assisted_tokens)
        return parts.decoder.forward(parts.token_ids(self._inputs, num_tokens), attention, context)

    def _assist(self, batch: StepBatch) -> Assistance | None:
        """Hand the chunks that are to be assisted to the workers; None if there are none."""
        if self._assistant is None or not batch.cpu_layers:
            return None
        assisted = [
            AssistedSegment(*segment) for segment in batch.segments[: batch.num_assisted_segments].tolist()
        ]
        return self._assistant.begin(assisted, batch.num_assisted_tokens, batch.cpu_layers)

    # Both

    def _start_copies(self, segments: Ints) -> tuple[Transfer, ...]:
        """Begin to copy what was loaded; what these segments have to wait for. Not before the inputs are
        sent: one engine makes all copies to the device, in the order in which they are queued, and the step
        would wait for the last layers of all adapters before its first."""
        self._parts.pool.start_copies()
        return self._parts.pool.gates(segments[:, 0].tolist())

    def _tiling(self, most_queries: int) -> PrefillTiling:
        shape = self._parts.decoder.config.shape
        return choose_prefill_tiling(most_queries, self._group, shape.head_dim, self._parts.decoder.dtype)

    def _cut(self, batch: StepBatch, tiling: PrefillTiling) -> Ints:
        """[tiles, 2] of paged prefill."""
        num_queries = np.diff(batch.first_tokens).tolist()
        return np.array(
            build_prefill_tiles(num_queries, batch.context_lens.tolist(), tiling.query_tokens(self._group)),
            np.int32,
        )

    @property
    def _group(self) -> int:
        """Heads that share a kv head."""
        shape = self._parts.decoder.config.shape
        return shape.num_heads // shape.num_kv_heads
