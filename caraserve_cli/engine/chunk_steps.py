"""Steps with prompts in them: their inputs, their LoRA, their graphs, and what CPU workers do of them.

Most replay CUDA graphs, cut where layers of cold adapters are waited for: of each piece there is one that
CPU workers assist, and one that they do not. Launched kernel by kernel are steps of many tokens, for which
the host is fast enough, and those with rotary frequencies of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.adapters.transfer import Transfer
from caraserve_cli.coldstart.assistant import Assistance, Assistant, AssistedSegment
from caraserve_cli.coldstart.assisted_lora import AssistedLora
from caraserve_cli.engine.gpu_parts import GpuParts, write_work
from caraserve_cli.engine.pool_lora import LoraWay, PoolLora, align_work
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_cli.engine.step_graphs import StepGraphs
from caraserve_cli.engine.step_sizes import MAX_ASSISTED_TOKENS
from caraserve_cli.model.contexts import LoraContext, NoLora
from caraserve_cli.model.decoder import ResidualStream
from caraserve_cli.model.triton_attention import ChunkAttention
from caraserve_kernels.paged_prefill import PrefillTiling, build_prefill_tiles, choose_prefill_tiling


@dataclass(frozen=True, slots=True)
class AssistedWay:
    """How a piece of a step is computed whose layers CPU workers assist; the variant of its graph.

    Attributes:
        way: of the LoRA of the tokens that are not assisted.
        link_bytes_per_s: of the emulated link that the workers' rows go over, None for the machine's own.
    """

    way: LoraWay
    link_bytes_per_s: float | None


def is_of_earlier_link(variant: Hashable, link_bytes_per_s: float | None) -> bool:
    """Whether the graphs of a variant are for an emulated link that was there before this one, None for the
    machine's own. A benchmark goes back and forth between that and one emulated link, and on to another."""
    if not isinstance(variant, AssistedWay) or link_bytes_per_s is None:
        return False
    return variant.link_bytes_per_s not in (None, link_bytes_per_s)


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    """A step whose inputs are on their way to the device.

    Attributes:
        num_tokens: padding included.
        num_tiles: of paged prefill, padding included.
        way: of its LoRA, None for none.
        gates: transfers that its adapters may still be in.
        early_gates: those of adapters that are not assisted.
        cpu_layers: leading layers that CPU workers assist.
    """

    num_tokens: int
    num_tiles: int
    way: LoraWay | None
    gates: tuple[Transfer, ...]
    early_gates: tuple[Transfer, ...]
    cpu_layers: int


class ChunkSteps:
    """Launches them.

    Args:
        parts: of the runner.
        assistant: CPU workers that compute with cold adapters; None where there are none.
        max_tokens: of a step.
        sizes: to which steps are padded that have graphs, in ascending order.
        stream: on which they are launched, if at the same time as others.

    Attributes:
        assistance: of CPU workers in the step that was launched last; None for none.
    """

    def __init__(
        self,
        parts: GpuParts,
        assistant: Assistant | None,
        max_tokens: int,
        sizes: SequenceOf[int],
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self._parts, self._assistant, self._sizes = parts, assistant, sizes
        self.assistance: Assistance | None = None
        config, shape, device = parts.config, parts.decoder.config.shape, parts.device
        capacity = PoolLora.work_capacity(max_tokens, config.max_running, decoding=False)
        # In a step that is assisted there are lists of all adapters, and from here on of those that are not.
        self._early_work = align_work(capacity)
        self._inputs = parts.make_inputs(max_tokens, self._early_work + capacity)
        self._lora = parts.make_lora(self._inputs, max_tokens, decoding=False)
        # The layers of each piece. Between two of them `_residual` has the residual stream, and `_handed`
        # what is to be added to it; after the last one `_handed` has what comes out of the decoder.
        ends = [end for _, end in LayerOrder().groups(shape.num_layers)]
        self._pieces = [range(first, end) for first, end in pairwise((0, *ends))]
        self._residual, self._handed = (
            torch.empty(sizes[-1], shape.hidden_size, dtype=parts.decoder.dtype, device=device)
            for _ in range(2)
        )
        self._graphs = StepGraphs(self._compute, len(self._pieces), device, stream)

    def warm_up(self, *, with_lora: bool) -> None:
        """Compile the kernels and capture the graphs that are missing; those of earlier links are given back.
        None with assistance must be under way."""
        self._inputs.clear()
        if self._assistant is not None:
            link_bytes_per_s = self._assistant.ops.link_bytes_per_s
            self._graphs.drop(lambda variant: is_of_earlier_link(variant, link_bytes_per_s))
        for size in self._sizes:
            self._graphs.prepare(size, None)
            if with_lora:
                self._prepare(size)

    def _prepare(self, size: int) -> None:
        """Capture what is missing of the graphs with LoRA."""
        for way in self._lora.ways(size):
            self._graphs.prepare(size, way)
            if self._assistant is not None and size <= MAX_ASSISTED_TOKENS:
                self._graphs.prepare(size, self._assisted_way(way))

    def drop_graphs(self) -> None:
        """See `StepGraphs.drop`."""
        self._graphs.drop()

    def launch(self, batch: StepBatch, variants: Tensor | None) -> Tensor:
        """Queue a step; its logits [yielding chunks, vocabulary]. `variants` are each token's rotary
        frequencies in host memory, None for the base's."""
        decoder = self._parts.decoder
        size = next((size for size in self._sizes if size >= batch.num_tokens), None)
        if variants is not None or (batch.cpu_layers and size is not None and size > MAX_ASSISTED_TOKENS):
            size = None
        self._parts.pool.start_copies()
        self.assistance = self._assist(batch, size)
        if size is None:
            sent = self._send(batch, batch.num_tokens)
            if self.assistance is not None:
                self.assistance.tell_device()
            token_ids = self._parts.token_ids(self._inputs, sent.num_tokens)
            attention = self._attention(sent.num_tokens, sent.num_tiles, variants)
            hidden = decoder.forward(token_ids, attention, self._context(sent))
        else:
            hidden = self._replay(self._send(batch, size))
        if self.assistance is not None and self._assistant is not None:
            self._assistant.ops.clear()
        self._parts.pool.transfers.begin()
        last_tokens = self._inputs.fields.last_tokens[: batch.last_tokens.shape[0]]
        return decoder.logits(hidden.index_select(0, last_tokens))

    def _assist(self, batch: StepBatch, size: int | None) -> Assistance | None:
        """Hand the chunks that are to be assisted to the workers; None if there are none. In a step of a size
        the workers compute whole pieces."""
        if self._assistant is None or not batch.cpu_layers:
            return None
        cpu_layers = batch.cpu_layers
        if size is not None:
            cpu_layers = next(layers.stop for layers in self._pieces if layers.stop >= cpu_layers)
        assisted = [
            AssistedSegment(*segment) for segment in batch.segments[: batch.num_assisted_segments].tolist()
        ]
        assistance = self._assistant.begin(assisted, batch.num_assisted_tokens, cpu_layers)
        if assistance is None and batch.num_lent_tokens:
            return self._assistant.miss(cpu_layers)
        return assistance

    # Inputs

    def _send(self, batch: StepBatch, num_tokens: int) -> _Sent:
        """Bring a step's inputs to the device, padded to so many tokens."""
        work, assistance = self._inputs.begin(), self.assistance
        on_device = batch.device_segments
        way, num_work = write_work(work, self._lora, on_device, num_tokens)
        if way is None and batch.num_lent_tokens:
            way = self._lora.choose(on_device, num_tokens)
            num_work = self._lora.write_work(work, on_device, way)
        unassisted, num_early = batch.segments[batch.num_assisted_segments :], 0
        if assistance is not None and way is not None:
            num_early = self._lora.write_work(work[self._early_work :], unassisted, way)
        tiling = self._tiling(num_tokens)
        tiles = build_prefill_tiles(
            np.diff(batch.first_tokens).tolist(),
            batch.context_lens.tolist(),
            tiling.query_tokens(self._group),
        )
        # A graph is for as many tiles as tokens: there are never more.
        tiles += [(-1, 0)] * (num_tokens - len(tiles) if num_tokens <= self._sizes[-1] else 0)
        early_work = (self._early_work, self._early_work + num_early)
        num_padded = num_tokens - batch.num_tokens
        self._inputs.send(batch, num_padded, np.array(tiles, np.int32), num_work, early_work)
        pool = self._parts.pool
        return _Sent(
            num_tokens,
            len(tiles),
            way,
            gates=pool.gates(on_device[:, 0].tolist()),
            early_gates=pool.gates(unassisted[:, 0].tolist()),
            cpu_layers=0 if assistance is None else assistance.cpu_layers,
        )

    def _context(self, sent: _Sent) -> LoraContext:
        """LoRA that is launched kernel by kernel."""
        if sent.way is None:
            return NoLora()
        late = self._lora.context(sent.way, sent.gates)
        return self._assisted(sent.way, late, sent.cpu_layers, sent.early_gates) if sent.cpu_layers else late

    def _assisted(
        self, way: LoraWay, late: LoraContext, cpu_layers: int, early_gates: tuple[Transfer, ...] = ()
    ) -> LoraContext:
        assert self._assistant is not None
        early = self._lora.context(way, early_gates, self._early_work)
        return AssistedLora(early, late, self._assistant.ops, cpu_layers, way.groups)

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

    def _assisted_way(self, way: LoraWay) -> AssistedWay:
        assert self._assistant is not None
        return AssistedWay(way, self._assistant.ops.link_bytes_per_s)

    def _replay(self, sent: _Sent) -> Tensor:
        """Replay the pieces with layers of CPU workers, then the others."""
        num_assisted = sum(layers.stop <= sent.cpu_layers for layers in self._pieces)

        def waiting_for(gates: tuple[Transfer, ...]) -> Callable[[int], None]:
            def wait(piece: int) -> None:
                for gate in gates:
                    gate.wait_for_layers(self._pieces[piece])

            return wait

        size, way, pieces = sent.num_tokens, sent.way, range(len(self._pieces))
        # Which computes in the same buffers what is computed anyway.
        self._graphs.prepare(size, way)
        if self.assistance is not None and way is not None:
            assisted_way = self._assisted_way(way)
            self._graphs.prepare(size, assisted_way)
            self.assistance.tell_device()
            self._graphs.run(size, assisted_way, waiting_for(sent.early_gates), pieces[:num_assisted])
        self._graphs.run(size, way, waiting_for(sent.gates), pieces[num_assisted:])
        return self._handed[:size]

    def _compute(self, size: int, way: Hashable, piece: int) -> None:
        """`way` is a LoraWay, an AssistedWay, or None without LoRA."""
        context: LoraContext = NoLora()
        if isinstance(way, LoraWay):
            context = self._lora.context(way)
        elif isinstance(way, AssistedWay):
            context = self._assisted(way.way, context, self._pieces[piece].stop)
        self._run_piece(size, context, piece)

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
