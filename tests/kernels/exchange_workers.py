"""Processes that play the CPU workers of an exchange, over real shared memory."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from caraserve_kernels.host_exchange import MAX_WORKERS, OP_WORDS, HostExchange, write_ops

_PAGE_BYTES = 4096
_FAILED_BYTE, _DONE_BYTE = 64, 128


class Op(NamedTuple):
    """What the workers compute: each row of the result is the row of x, over and over.

    Attributes:
        silent: workers that do not finish this op, as if they were late for ever.
    """

    number: int
    num_rows: int
    in_width: int
    out_width: int
    silent: frozenset[int] = frozenset()


def op_words(
    number: int,
    num_rows: int,
    *,
    first_number: int | None = None,
    workers: int = 1,
    late_ms: float = 20.0,
    device: str = "cpu",
) -> Tensor:
    """What a device is told of one op, by default of the first of its step."""
    first = number if first_number is None else first_number
    # A step's numbers follow one another: the op is the last of its step.
    step = np.zeros((number - first + 1, OP_WORDS), np.int32)
    write_ops(step, range(len(step)), num_rows, first, workers, late_ms)
    return torch.from_numpy(step[-1]).to(device)


class SharedRows:
    """An exchange in memory that forked processes share."""

    def __init__(self, max_elements: int, dtype: torch.dtype) -> None:
        half_bytes = -(-max_elements * dtype.itemsize // _PAGE_BYTES) * _PAGE_BYTES
        self.memory = mmap.mmap(-1, _PAGE_BYTES + 2 * half_bytes)
        self.raw_dtype = np.uint32 if dtype.itemsize == 4 else np.uint16
        self._max_elements, self._half_bytes = max_elements, half_bytes

        def words(first_byte: int, count: int, word_dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.frombuffer(self.memory, dtype=word_dtype, count=count, offset=first_byte)

        self.exchange = HostExchange(
            x=words(_PAGE_BYTES, max_elements, dtype),
            result=words(_PAGE_BYTES + half_bytes, max_elements, dtype),
            sent=words(0, 1),
            done=words(_DONE_BYTE, MAX_WORKERS),
            failed=words(_FAILED_BYTE, 1),
        )

    @contextmanager
    def workers(self, indices: Sequence[int], ops: Sequence[Op]) -> Iterator[int]:
        """Run one process for each index, all with the same ops; gives their mask."""
        context = multiprocessing.get_context("fork")
        started = [
            context.Process(target=self._work, args=(place, indices, ops, os.getpid()), daemon=True)
            for place in range(len(indices))
        ]
        for process in started:
            process.start()
        try:
            yield sum(1 << index for index in indices)
        finally:
            for process in started:
                process.kill()
                process.join()

    def _work(self, place: int, indices: Sequence[int], ops: Sequence[Op], parent: int) -> None:
        sent = np.frombuffer(self.memory, np.int32, 1)
        done = np.frombuffer(self.memory, np.int32, MAX_WORKERS, _DONE_BYTE)
        x = np.frombuffer(self.memory, self.raw_dtype, self._max_elements, _PAGE_BYTES)
        result = np.frombuffer(
            self.memory, self.raw_dtype, self._max_elements, _PAGE_BYTES + self._half_bytes
        )
        for op in ops:
            while sent[0] < op.number:
                if os.getppid() != parent:
                    return
                time.sleep(0)
            rows = slice(place, op.num_rows, len(indices))
            x_rows = x[: op.num_rows * op.in_width].reshape(op.num_rows, op.in_width)[rows]
            result_rows = result[: op.num_rows * op.out_width].reshape(op.num_rows, op.out_width)[rows]
            result_rows[:] = np.tile(x_rows, (1, -(-op.out_width // op.in_width)))[:, : op.out_width]
            if indices[place] not in op.silent:
                done[indices[place]] = op.number


def expected_sum(x: Tensor, y: Tensor) -> Tensor:
    """y + what the workers make of x."""
    repeats = -(-y.shape[1] // x.shape[1])
    return (y.float() + x.float().repeat(1, repeats)[:, : y.shape[1]]).to(y.dtype)
