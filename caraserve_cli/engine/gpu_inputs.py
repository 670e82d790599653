"""How a step's numbers reach the GPU: fixed buffers there, filled from pinned memory, without waiting.

Kernels and CUDA graphs read the same addresses in every step. A kernel fetches the numbers, so that they and
adapters on their way do not wait for one another (`host_rows`), and the next step can be written down while
the last one's wait for their turn on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caraserve_cli.engine.pool_lora import align_work
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_kernels.host_rows import HostWords

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class BatchFields:
    """Views of one flat buffer, int32; see `StepBatch`. `tiles` [tokens, 2] are those of paged prefill."""

    token_ids: Tensor
    feed_rows: Tensor
    positions: Tensor
    slot_mapping: Tensor
    context_lens: Tensor
    first_tokens: Tensor
    last_tokens: Tensor
    tiles: Tensor

    @classmethod
    def views(cls, flat: Tensor, max_tokens: int, max_sequences: int) -> BatchFields:
        """Cut a flat buffer of `num_elements` into its fields."""
        parts = torch.split(flat, cls._sizes(max_tokens, max_sequences))
        token_ids, feed_rows, positions, slot_mapping, context_lens, first_tokens, last_tokens, tiles = parts
        return cls(
            token_ids,
            feed_rows,
            positions,
            slot_mapping,
            context_lens,
            first_tokens,
            last_tokens,
            tiles.view(-1, 2),
        )

    @classmethod
    def num_elements(cls, max_tokens: int, max_sequences: int) -> int:
        """Size of the flat buffer."""
        return sum(cls._sizes(max_tokens, max_sequences))

    @staticmethod
    def _sizes(max_tokens: int, max_sequences: int) -> list[int]:
        return [*[max_tokens] * 4, max_sequences, max_sequences + 1, max_sequences, 2 * max_tokens]


class GpuInputs:
    """The inputs of steps of up to `max_tokens` tokens in `max_sequences` sequences.

    Attributes:
        fields: on the device.
        block_tables: [max_sequences, max_blocks] on the device.
        work: [work_capacity] on the device, the work lists of LoRA.
    """

    def __init__(
        self,
        max_tokens: int,
        max_sequences: int,
        max_blocks: int,
        work_capacity: int,
        device: torch.device,
    ) -> None:
        self._max_tokens, self._max_sequences = max_tokens, max_sequences
        self._num_fields = BatchFields.num_elements(max_tokens, max_sequences)
        self._work_start = align_work(self._num_fields)
        num_words = self._work_start + work_capacity
        self._words = torch.zeros(num_words, dtype=torch.int32, device=device)
        self.fields = self._fields_of(self._words)
        self.work = self._words[self._work_start :]
        self.block_tables = torch.zeros(max_sequences, max_blocks, dtype=torch.int32, device=device)
        self._sent_tables = np.zeros((0, 0), np.int32)  # what `block_tables` begins with
        self._host_words = HostWords(num_words, device)
        self._host_tables = HostWords(max_sequences * max_blocks, device)
        self._written = torch.zeros(0, dtype=torch.int32)  # what `begin` gave

    def clear(self) -> None:
        """Queue: from here on the step is one that sees nothing and writes nothing, whatever its size."""
        self.begin()
        self._written.zero_()
        self._fields_of(self._written).slot_mapping.fill_(-1)
        self._host_words.read_to(self._words[None])

    def _fields_of(self, words: Tensor) -> BatchFields:
        return BatchFields.views(words[: self._num_fields], self._max_tokens, self._max_sequences)

    def begin(self) -> Ints:
        """Start writing down a step; the work list to be filled."""
        self._written = self._host_words.begin()
        work: Ints = self._written[self._work_start :].numpy()
        return work

    def send(
        self,
        batch: StepBatch,
        num_padded: int,
        tiles: Ints | None,
        num_work: int,
        apart_work: tuple[int, int] = (0, 0),
    ) -> None:
        """Bring a step to the device, after `begin`.

        Args:
            batch: the step.
            num_padded: tokens that fill the batch up; they see nothing and write nothing. In a step that only
                decodes each is a sequence, in any other they are of none.
            tiles: of paged prefill, None for a step that only decodes.
            num_work: elements of the work list in use, from the first on.
            apart_work: from which one to before which one more of them are in use.
        """
        fields = self._fields_of(self._written)
        for name, padding in (("token_ids", 0), ("feed_rows", 0), ("positions", 0), ("slot_mapping", -1)):
            _fill(getattr(fields, name), getattr(batch, name), num_padded, padding)
        num_missing = self._max_sequences - batch.num_sequences
        _fill(fields.context_lens, batch.context_lens, num_missing, 0)
        _fill(fields.first_tokens, batch.first_tokens, num_missing, batch.num_tokens)
        _fill(fields.last_tokens, batch.last_tokens, 0, 0)
        if tiles is not None:
            _fill(fields.tiles, tiles, 0, 0)
        self._send_tables(batch)
        self._host_words.read_to(self._words[None, : self._work_start + num_work])
        if apart_work[0] < apart_work[1]:
            first, end = (self._work_start + place for place in apart_work)
            self._host_words.read_to(self._words[None, first:end], first)

    def _send_tables(self, batch: StepBatch) -> None:
        """Only as wide as the longest table, side by side; spread to their fixed places on the device. They
        stay as they are while sequences decode within a block."""
        if np.array_equal(batch.block_tables, self._sent_tables):
            return
        rows, columns = batch.block_tables.shape
        self._host_tables.begin()[: rows * columns].numpy()[:] = batch.block_tables.reshape(-1)
        self._host_tables.read_to(self.block_tables[:rows, :columns])
        self._sent_tables = batch.block_tables


def _fill(target: Tensor, values: Ints, num_padded: int, padding: int) -> None:
    array = target.numpy()
    array[: values.shape[0]] = values
    array[values.shape[0] : values.shape[0] + num_padded] = padding
