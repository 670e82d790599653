"""Steps that only decode: their inputs, their LoRA, and their graphs."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

from caraserve_cli.engine.depot import AdapterDepot
from caraserve_cli.engine.gpu_parts import GpuParts, write_work
from caraserve_cli.engine.pool_lora import LoraWay, PoolLora
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_cli.engine.step_graphs import StepGraphs
from caraserve_cli.engine.step_sizes import decode_size, decode_sizes
from caraserve_cli.model.contexts import NoLora
from caraserve_cli.model.triton_attention import DecodeAttention
from caraserve_kernels.paged_decode import MAX_SPLITS, DecodeScratch


class DecodeSteps:
    """Launches them: each replays a CUDA graph.

    Args:
        parts: of the runner.
        adapters: whose copies are begun with each step.
    """

    def __init__(self, parts: GpuParts, adapters: AdapterDepot) -> None:
        self._parts, self._adapters = parts, adapters
        config, shape, device = parts.config, parts.decoder.config.shape, parts.device
        max_running = config.max_running
        capacity = PoolLora.work_capacity(max_running, max_running, decoding=True)
        self._inputs = parts.make_inputs(max_running, capacity)
        self._lora = parts.make_lora(self._inputs, max_running, decoding=True)
        self._scratch = DecodeScratch.allocate(
            max(max_running, MAX_SPLITS * parts.num_sms),
            max_running,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            device,
        )
        self._logits = torch.empty(max_running, shape.vocab_size, dtype=parts.decoder.dtype, device=device)
        self._graphs = StepGraphs(self._compute, 1, device)

    def warm_up(self, *, with_lora: bool) -> None:
        """Compile the kernels and capture the graphs that are missing."""
        self._inputs.clear()
        for size in decode_sizes(self._parts.config.max_running):
            for way in (None, *self._lora.ways(size)) if with_lora else (None,):
                self._graphs.prepare(size, way)

    def drop_graphs(self) -> None:
        """See `StepGraphs.drop`."""
        self._graphs.drop()

    def launch(self, batch: StepBatch) -> Tensor:
        """Queue a step; its logits [sequences, vocabulary]."""
        num_sequences = batch.num_sequences
        size = decode_size(num_sequences, self._parts.config.max_running)
        way, num_work = write_work(self._inputs.begin(), self._lora, batch.segments, size)
        self._inputs.send(batch, size - num_sequences, None, num_work)
        self._adapters.begin_copies()
        for gate in self._parts.pool.gates(batch.segments[:, 0].tolist()):
            gate.wait()
        self._graphs.run(size, way)
        return self._logits[:num_sequences]

    def _compute(self, size: int, way: Hashable, piece: int) -> None:
        """`way` is a LoraWay, None without LoRA; all of the step is one piece."""
        parts = self._parts
        batch = parts.paged_batch(self._inputs, size, size)
        attention = DecodeAttention(batch, self._scratch, parts.num_sms)
        context = self._lora.context(way) if isinstance(way, LoraWay) else NoLora()
        hidden = parts.decoder.forward(parts.token_ids(self._inputs, size), attention, context)
        self._logits[:size].copy_(parts.decoder.logits(hidden))
