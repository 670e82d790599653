"""Prompts whose adapters are on their way, computed beside the steps of all others.

A step that waits for a link or for CPU workers leaves the GPU idle; in the batch everybody would wait with
it. So it has a stream of its own, and buffers and graphs of its own: others go on meanwhile, and lose what
the GPU needs for the base's part of the prompt, and no more. One at a time: there is one set of workers, and
one link.

What keeps both apart: blocks and adapters that the step uses belong to its sequences until it was checked,
so that no other step writes to them, nor reads what it writes. It begins when the steps queued before it have
ended, which may still read blocks that were given to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as SequenceOf
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from caraserve_cli.coldstart.assistant import Assistant
from caraserve_cli.engine.chunk_steps import ChunkSteps
from caraserve_cli.engine.gpu_parts import GpuParts, on_host, out_of_memory
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_cli.engine.step_sizes import beside_sizes
from caraserve_cli.engine.steps_under_way import BesideResult
from caraserve_cli.engine.tokens_under_way import LogitsUnderWay, TokensUnderWay
from caraserve_cli.model.sampler import choose_tokens, needs_lockstep
from caraserve_cli.step_plan import ScheduledChunk
from caraserve_kernels.linear import counters_apart


class BesideSteps:
    """Launches them.

    Args:
        parts: of the runner.
        assistant: CPU workers that compute with cold adapters; None where there are none.

    Attributes:
        max_tokens: of a step.
    """

    def __init__(self, parts: GpuParts, assistant: Assistant | None) -> None:
        self._parts, self._assistant = parts, assistant
        self._sizes = beside_sizes(parts.config.max_batch_tokens)
        self.max_tokens = self._sizes[-1]
        is_cuda = parts.device.type == "cuda"
        self._stream = torch.cuda.Stream(parts.device) if is_cuda else None  # type: ignore[no-untyped-call]
        self._made: ChunkSteps | None = None

    @property
    def _steps(self) -> ChunkSteps:
        """Made when first needed: their buffers take memory, and most strategies compute nothing here."""
        if self._made is None:
            self._made = ChunkSteps(self._parts, self._assistant, self.max_tokens, self._sizes, self._stream)
        return self._made

    def warm_up(self, *, with_lora: bool) -> None:
        """Compile the kernels and capture the graphs that are missing. Nothing must be under way."""
        with counters_apart():
            self._steps.warm_up(with_lora=with_lora)

    @torch.inference_mode()
    def launch(self, chunks: SequenceOf[ScheduledChunk]) -> BesideResult:
        """Queue a step; see `BesideRunner`.

        Raises:
            DeviceMemoryError: nothing of it will be computed.
        """
        batch = StepBatch.build(chunks, self._parts.config.kv_block_tokens, {})
        with suppress(torch.OutOfMemoryError):
            return self._launch(batch)
        raise out_of_memory(batch.num_tokens)

    def _launch(self, batch: StepBatch) -> BesideResult:
        # On the stream of the others, which reads what they move.
        self._parts.pool.start_copies()
        with self._apart():
            try:
                logits = self._steps.launch(batch, on_host(self._parts.rope_variants(batch)))
                return self._choose(logits, batch.yielding)
            except torch.OutOfMemoryError:
                if self._steps.assistance is not None:
                    self._steps.assistance.abandon()
                raise

    def _choose(self, logits: Tensor, yielding: SequenceOf[ScheduledChunk]) -> BesideResult:
        sequences, pool = [chunk.sequence for chunk in yielding], self._parts.pool
        assistance = self._steps.assistance
        if any(needs_lockstep(sequence.request.sampling) for sequence in sequences):
            return LogitsUnderWay(yielding, logits, pool, assistance)
        return TokensUnderWay(yielding, choose_tokens(logits.float(), sequences), pool, None, assistance)

    def come_after(self) -> None:
        """What is queued on the current stream from here on comes after the step that was launched last."""
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        with counters_apart():
            if self._stream is None:
                yield
                return
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
            with torch.cuda.stream(self._stream):
                yield
