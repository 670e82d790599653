"""What a step that a GPU has not finished gives, on its way to the host."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.coldstart.assistant import Assistance, assist_outcome
from caraserve_cli.engine.stream_mark import StreamMark
from caraserve_cli.model.sampler import Sampled, sample
from caraserve_cli.step_plan import AssistOutcome, ScheduledChunk


class _UnderWay(ABC):
    """The `BesideResult` of such a step; to be made when all of it has been queued.

    Args:
        chunks: those that yield a token.
        device: where it is computed.
        pool: of adapters, which is told when the step has ended; what has arrived there is let go of then.
        step: its number, as the pool has it; None for one that the pool need not know of.
        assistance: of CPU workers in this step; None for none.
    """

    def __init__(
        self,
        chunks: Sequence[ScheduledChunk],
        device: torch.device,
        pool: PackedPool,
        step: int | None,
        assistance: Assistance | None,
    ) -> None:
        self._chunks, self._pool, self._step, self._assistance = chunks, pool, step, assistance
        self._arrived = StreamMark(device)
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
        return list(zip(self._chunks, self._tokens(), strict=True))

    @property
    def adapter_copy_ms(self) -> float:
        """See `StepResult`."""
        return self._pool.transfers.take_copied_ms()

    @property
    def assist_outcome(self) -> AssistOutcome:
        """See `StepResult`."""
        return assist_outcome(self._assistance)

    @abstractmethod
    def _tokens(self) -> list[Sampled]:
        """One for each chunk, when the step has ended."""


class TokensUnderWay(_UnderWay):
    """The `StepResult` of a step whose tokens the GPU chooses.

    `tokens` [chunks or more] are on the device; for the rest see `_UnderWay`.
    """

    def __init__(
        self,
        chunks: Sequence[ScheduledChunk],
        tokens: Tensor,
        pool: PackedPool,
        step: int | None,
        assistance: Assistance | None,
    ) -> None:
        self._chosen = torch.empty(len(chunks), dtype=tokens.dtype, pin_memory=tokens.is_cuda)
        self._chosen.copy_(tokens[: len(chunks)], non_blocking=True)
        super().__init__(chunks, tokens.device, pool, step, assistance)

    def _tokens(self) -> list[Sampled]:
        return [Sampled(token, None) for token in self._chosen.tolist()]


class LogitsUnderWay(_UnderWay):
    """The same of a step whose tokens are chosen when it has ended, since the host has to look at more than
    them.

    `logits` [chunks, vocabulary] are on the device.
    """

    def __init__(
        self,
        chunks: Sequence[ScheduledChunk],
        logits: Tensor,
        pool: PackedPool,
        assistance: Assistance | None,
    ) -> None:
        self._logits = logits
        super().__init__(chunks, logits.device, pool, None, assistance)

    def _tokens(self) -> list[Sampled]:
        return sample(self._logits.float(), [chunk.sequence for chunk in self._chunks])
