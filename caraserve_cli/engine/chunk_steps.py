"""Steps with prompts in them: their inputs, their LoRA, their graphs, and what CPU workers do of them.

Most replay CUDA graphs, cut where layers of cold adapters are waited for. Launched kernel by kernel are the
layers that CPU workers assist, whose kernels are told numbers that only grow; steps of many tokens, for which
the host is fast enough; and those with rotary frequencies of their own.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from caraserve_cli.adapters.transfer import LayerOrder, Transfer
from caraserve_cli.coldstart.assistant import Assistance, Assistant, AssistedSegment
from caraserve_cli.coldstart.assisted_lora import AssistedLora
from caraserve_cli.engine.gpu_parts import GpuParts, write_work
from caraserve_cli.engine.pool_lora import LoraWay, PoolLora, align_work
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_cli.engine.step_graphs import StepGraphs
from caraserve_cli.engine.step_sizes import MAX_CHUNK_TOKENS, chunk_size, chunk_sizes
from caraserve_cli.model.contexts import LoraContext, NoLora
from caraserve_cli.model.decoder import ResidualStream
from caraserve_cli.model.triton_attention import ChunkAttention
from caraserve_kernels.paged_prefill import PrefillTiling, build_prefill_tiles, choose_prefill_tiling


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    """A step whose inputs are on their way to the device.

    Attributes:
        num_tokens: padding included.
        num_tiles: of paged prefill, padding included.
        way: of its LoRA, None for none.
        gates: transfers that its adapters may still be in.
        context: for layers that are launched kernel by kernel.
    """

    num_tokens: int
    num_tiles: int
    way: LoraWay | None
    gates: tuple[Transfer, ...]
    context: LoraContext


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
        # The layers of each piece. Between two of them `_residual` has the residual stream, and `_handed`
        # what is to be added to it; after the last one `_handed` has what comes out of the decoder.
        ends = [end for _, end in LayerOrder().groups(shape.num_layers)]
        self._pieces = [range(first, end) for first, end in pairwise((0, *ends))]
        self._residual, self._handed = (
            torch.empty(
                min(max_tokens, MAX_CHUNK_TOKENS), shape.hidden_size, dtype=parts.decoder.dtype, device=device
            )
            for _ in range(2)
        )
        self._graphs = StepGraphs(self._compute, len(self._pieces), device)

    def warm_up(self, *, with_lora: bool) -> None:
        """Compile the kernels and capture the graphs."""
        for size in chunk_sizes(self._parts.config.max_batch_tokens):
            for way in (None, *self._lora.ways(size)) if with_lora else (None,):
                self._graphs.prepare(size, way)

    def launch(self, batch: StepBatch, variants: Tensor | None) -> Tensor:
        """Queue a step; its logits [yielding chunks, vocabulary]. `variants` are each token's rotary
        frequencies in host memory, None for the base's."""
        decoder, assistance = self._parts.decoder, self._assist(batch)
        self.assistance = assistance
        size = chunk_size(batch.num_tokens, self._parts.config.max_batch_tokens)
        if size is None or variants is not None:
            sent = self._send(batch, batch.num_tokens, assistance)
            token_ids = self._parts.token_ids(self._inputs, sent.num_tokens)
            attention = self._attention(sent.num_tokens, sent.num_tiles, variants)
            hidden = decoder.forward(token_ids, attention, sent.context)
        else:
            hidden = self._replay(
                self._send(batch, size, assistance), 0 if assistance is None else assistance.cpu_layers
            )
        self._parts.pool.transfers.begin()
        last_tokens = self._inputs.fields.last_tokens[: batch.last_tokens.shape[0]]
        return decoder.logits(hidden.index_select(0, last_tokens))

    def _assist(self, batch: StepBatch) -> Assistance | None:
        """Hand the chunks that are to be assisted to the workers; None if there are none."""
        if self._assistant is None or not batch.cpu_layers:
            return None
        assisted = [
            AssistedSegment(*segment) for segment in batch.segments[: batch.num_assisted_segments].tolist()
        ]
        return self._assistant.begin(assisted, batch.num_assisted_tokens, batch.cpu_layers)

    # Inputs

    def _send(self, batch: StepBatch, num_tokens: int, assistance: Assistance | None) -> _Sent:
        """Bring a step's inputs to the device, padded to so many tokens, and begin to copy what was loaded.
        Not before the inputs: one engine makes all copies to the device, in the order in which they are
        queued, and the step would wait for the last layers of all adapters before its first."""
        work = self._inputs.begin()
        way, num_work = write_work(work, self._lora, batch.segments, num_tokens)
        unassisted = batch.segments[batch.num_assisted_segments :]
        early, first_early = way, 0
        if assistance is not None:
            first_early = align_work(num_work)
            early, num_early = write_work(work[first_early:], self._lora, unassisted, num_tokens)
            num_work = first_early + num_early
        tiling = self._tiling(num_tokens)
        tiles = build_prefill_tiles(
            np.diff(batch.first_tokens).tolist(),
            batch.context_lens.tolist(),
            tiling.query_tokens(self._group),
        )
        # A graph is for as many tiles as tokens: there are never more.
        tiles += [(-1, 0)] * (num_tokens - len(tiles) if num_tokens <= MAX_CHUNK_TOKENS else 0)
        self._inputs.send(batch, num_tokens - batch.num_tokens, np.array(tiles, np.int32), num_work)
        pool = self._parts.pool
        pool.start_copies()
        gates = pool.gates(batch.segments[:, 0].tolist())
        context: LoraContext = NoLora() if way is None else self._lora.context(way, gates)
        if assistance is not None:
            gates_early = pool.gates(unassisted[:, 0].tolist())
            before = NoLora() if early is None else self._lora.context(early, gates_early, first_early)
            context = AssistedLora(before, context, assistance, batch.num_assisted_tokens)
        return _Sent(num_tokens, len(tiles), way, gates, context)

    def _attention(self, num_tokens: int, num_tiles: int, variants: Tensor | None = None) -> ChunkAttention:
        fields = self._inputs.fields
        return ChunkAttention(
            self._parts.paged_batch(self._inputs, num_tokens, self._parts.config.max_running, variants),
            fields.first_tokens,
            fields.tiles[:num_tiles],
            self._tiling(num_tokens),
        )

    def _tiling(self, num_tokens: int) -> PrefillTiling:
        decoder = self._parts.decoder
        return choose_prefill_tiling(num_tokens, self._group, decoder.config.shape.head_dim, decoder.dtype)

    @property
    def _group(self) -> int:
        """Heads that share a kv head."""
        shape = self._parts.decoder.config.shape
        return shape.num_heads // shape.num_kv_heads

    # Graphs

    def _replay(self, sent: _Sent, cpu_layers: int) -> Tensor:
        """Launch the pieces with layers of CPU workers kernel by kernel, and replay the others."""
        size, way = sent.num_tokens, sent.way
        num_assisted = sum(layers.start < cpu_layers for layers in self._pieces)
        self._graphs.prepare(size, way)  # which computes in the same buffers
        for piece in range(num_assisted):
            self._run_piece(size, sent.context, piece)

        def wait(piece: int) -> None:
            for layer in self._pieces[piece]:
                for gate in sent.gates:
                    gate.wait_for_layer(layer)

        self._graphs.run(size, way, wait, first_piece=num_assisted)
        return self._handed[:size]

    def _compute(self, size: int, way: Hashable, piece: int) -> None:
        """`way` is a LoraWay, None without LoRA."""
        self._run_piece(size, self._lora.context(way) if isinstance(way, LoraWay) else NoLora(), piece)

    def _run_piece(self, size: int, context: LoraContext, piece: int) -> None:
        decoder, layers = self._parts.decoder, self._pieces[piece]
        residual, handed = self._residual[:size], self._handed[:size]
        if piece == 0:
            residual.copy_(decoder.embed(self._parts.token_ids(self._inputs, size)).hidden)
        stream = ResidualStream(residual, handed if piece else None)
        stream = decoder.run_layers(layers, stream, self._attention(size, size), context)
        is_last = piece == len(self._pieces) - 1
        result = decoder.finish(stream) if is_last else stream.delta
        assert result is not None, "a piece has layers"
        handed.copy_(result)
