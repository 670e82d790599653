"""The tokens of a step that a GPU has not finished, on their way to the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.coldstart.assistant import Assistance, assist_outcome
from caraserve_cli.engine.stream_mark import StreamMark
from caraserve_cli.model.sampler import Sampled, sample
from caraserve_cli.step_plan import AssistOutcome, ScheduledChunk


class TokensUnderWay:
    """The `StepResult` of such a step.

    Args:
        chunks: those that yield a token.
        tokens: [chunks or more], on the device.
        pool: of adapters, which is told when the step has ended; what has arrived there is let go of then.
        step: its number, as the pool has it; None for one that the pool need not know of.
        assistance: of CPU workers in this step; None for none.
    """

    def __init__(
        self,
        chunks: Sequence[ScheduledChunk],
        tokens: Tensor,
        pool: PackedPool,
        step: int | None,
        assistance: Assistance | None,
    ) -> None:
        self._chunks, self._pool, self._step, self._assistance = chunks, pool, step, assistance
        self._tokens = torch.empty(len(chunks), dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        self._tokens.copy_(tokens[: len(chunks)], non_blocking=True)
        self._arrived = StreamMark(tokens.device)
        self._arrived.record()

    @property
    def has_ended(self) -> bool:
        """See `BesideResult`."""
        return self._arrived.is_past

    def sampled(self) -> list[tuple[ScheduledChunk, Sampled]]:
        """See `StepResult`."""
        self._arrived.wait()
        if self._step is not None:
            self._pool.note_ended(self._step)
        self._pool.transfers.settle()
        tokens: list[int] = self._tokens.tolist()
        return [(chunk, Sampled(token, None)) for chunk, token in zip(self._chunks, tokens, strict=True)]

    @property
    def adapter_copy_ms(self) -> float:
        """See `StepResult`."""
        return self._pool.transfers.take_copied_ms()

    @property
    def assist_outcome(self) -> AssistOutcome:
        """See `StepResult`."""
        return assist_outcome(self._assistance)


class LogitsUnderWay:
    """The `BesideResult` of a step whose tokens are chosen when it has ended, since the host has to look at
    more than them.

    Args:
        chunks: those that yield a token.
        logits: [chunks, vocabulary], on the device.
        pool: as for `TokensUnderWay`.
        assistance: as there.
    """

    def __init__(
        self,
        chunks: Sequence[ScheduledChunk],
        logits: Tensor,
        pool: PackedPool,
        assistance: Assistance | None,
    ) -> None:
        self._chunks, self._logits, self._pool, self._assistance = chunks, logits, pool, assistance
        self._arrived = StreamMark(logits.device)
        self._arrived.record()

    @property
    def has_ended(self) -> bool:
        """See `BesideResult`."""
        return self._arrived.is_past

    def sampled(self) -> list[tuple[ScheduledChunk, Sampled]]:
        """See `StepResult`."""
        self._arrived.wait()
        self._pool.transfers.settle()
        tokens = sample(self._logits.float(), [chunk.sequence for chunk in self._chunks])
        return list(zip(self._chunks, tokens, strict=True))

    @property
    def adapter_copy_ms(self) -> float:
        """See `StepResult`."""
        return self._pool.transfers.take_copied_ms()

    @property
    def assist_outcome(self) -> AssistOutcome:
        """See `StepResult`."""
        return assist_outcome(self._assistance)
