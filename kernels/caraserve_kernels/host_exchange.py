"""Rows that leave a stream of kernels for CPU workers, and come back, without the stream being drained.

One *op* is one (layer, fused group) of a step whose LoRA part the CPU computes. Ops have numbers that only
grow, and what else changes from step to step is with them in words in the device's memory: the same CUDA
graph sends the rows of every step. For op `number`, in stream order:

    send_rows: exchange.x = x;  sent = number                   (nobody sees `sent` before all of x)
    workers:   wait for sent >= number; write result; done[w] = number
    add_rows:  wait for done[w] >= number of every worker concerned; y += result     summed in float32

The exchange is host memory that the device addresses directly (pinned), so that nothing is launched, copied
or waited for by the host. The reader of `x` is done before the next op's x comes, because `add_rows` is
between the two; the same holds for `result`.

A worker may be late, or dead: `add_rows` waits for `late_ms`, then marks the op in `failed` and adds nothing,
and neither do the later ops of the same step: **a step during which `failed` has been set is to be discarded
as a whole.** The host reads `failed` when it reads the step's tokens. A late worker may still be writing its
rows to `result`: it must have ended, or have been ended, before the next step's first op is sent.

On a CPU both functions do the same by plain loads and stores on shared memory, whose order x86 keeps.

Neither kernel takes part in programmatic dependent launch: they start when the kernel in front of them has
ended, and the one behind starts when they have. So a product that runs *beside* the kernel in front of it
(`linear`) may be launched directly after them; it then runs beside nothing.

It does not know processes, adapters, or how the memory came to be. Sync-free coordination, as in CaraServe
(the copy and a signal in one stream), here on the way back too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_WORKERS = 64
# Int32s of an op: its number, its rows, the step's first number, the mask of its workers in two words, how
# long to wait in microseconds; and what makes the ops of a table lie at multiples of 16 bytes.
OP_WORDS = 8
MAX_OP_NUMBER = 2**31 - 1
# What a step may wait for one op: more is a mistake, and the kernel counts it in microseconds in an int32.
MAX_LATE_MS = 60_000.0
# On a CPU: a worker that answers at once is met spinning, one that computes gets the core. Chosen, not
# measured.
_SPIN_NS = 50_000
_SLEEP_S = 20e-6


@dataclass(frozen=True, slots=True, eq=False)
class HostExchange:
    """Memory shared by the stream that computes and the CPU workers; on a GPU's machine pinned and mapped.

    Attributes:
        x: [most elements of an op's input], the run's dtype; an op's rows lie at its start, [T, in_width].
        result: [most elements of an op's output], the run's dtype; [T, out_width] at its start, the modules
            of the fused group side by side.
        sent: int32 [1], number of the last op whose x is there.
        done: int32 [MAX_WORKERS], number of the last op that each worker has finished.
        failed: int32 [1], number of the last op that came too late, 0 for never.
    """

    x: Tensor
    result: Tensor
    sent: Tensor
    done: Tensor
    failed: Tensor

    def __post_init__(self) -> None:
        words = {"sent": (self.sent, 1), "done": (self.done, MAX_WORKERS), "failed": (self.failed, 1)}
        for name, (tensor, length) in words.items():
            if tensor.dtype != torch.int32 or tensor.shape != (length,) or not tensor.is_contiguous():
                raise ValueError(f"{name} must be int32 [{length}]; got {tensor.dtype} {tuple(tensor.shape)}")
        for name, tensor in (("x", self.x), ("result", self.result)):
            if tensor.dim() != 1 or not tensor.is_contiguous():
                raise ValueError(f"{name} must be flat; got {tuple(tensor.shape)}")


def write_ops(
    words: NDArray[np.int32],
    at: Sequence[int] | NDArray[np.int64],
    num_rows: int,
    first_number: int,
    workers: int,
    late_ms: float,
) -> None:
    """Write down the ops of a step, which get the numbers from `first_number` on.

    Args:
        words: int32 [..., OP_WORDS]; nothing is sent, waited for or added where there are zeros.
        at: where the ops are written, in the order in which they will be sent.
        num_rows: that are sent of each x, and to which a result is added.
        first_number: larger than those of all steps before.
        workers: bit mask of those that compute each of the ops together.
        late_ms: how long `add_rows` waits for an op.

    Raises:
        ValueError: no rows, a number is none, no worker, or a time out of bounds.
    """
    if num_rows < 1:
        raise ValueError(f"an op of {num_rows} rows")
    if first_number < 1 or first_number + len(at) - 1 > MAX_OP_NUMBER:
        raise ValueError(f"op number {first_number} and those after it are not in 1 to {MAX_OP_NUMBER}")
    if not 0 < workers < 1 << MAX_WORKERS:
        raise ValueError(f"workers {workers:#x} is no mask of 1 to {MAX_WORKERS} workers")
    if not 0 < late_ms <= MAX_LATE_MS:
        raise ValueError(f"late_ms is {late_ms}; it must be above 0 and at most {MAX_LATE_MS:.0f}")
    words[at, 0] = first_number + np.arange(len(at))
    words[at, 1:6] = (num_rows, first_number, *_mask_words(workers), max(1, round(late_ms * 1000)))


def send_rows(x: Tensor, exchange: HostExchange, op: Tensor) -> None:
    """Queue: copy the op's rows of x to the exchange, then raise `sent` to its number.

    Neither two sends nor two adds on one device may run at the same time: they would share counters.

    Args:
        x: [T, in_width], exchange.x's dtype, at least as many rows as the op has; rows may be strided,
            columns may not.
        op: int32 [OP_WORDS] on x's device, as `write_ops` writes them.

    Raises:
        ValueError: x does not fit the exchange, or the op is none.
    """
    _check_rows(x, exchange.x, "x")
    if x.dtype != exchange.x.dtype:
        raise ValueError(f"x is {x.dtype}, the exchange is for {exchange.x.dtype}")
    _check_op(op)
    if x.is_cuda:
        # Here, for CPU workers to start without Triton.
        from caraserve_kernels.host_exchange_kernels import launch_send_rows

        launch_send_rows(x, exchange.x, exchange.sent, op)
        return
    number, num_rows = op[:2].tolist()
    if number:
        rows = x[:num_rows]
        exchange.x[: rows.numel()].view(rows.shape).copy_(rows)
        exchange.sent.numpy()[0] = number


def add_rows(y: Tensor, exchange: HostExchange, op: Tensor) -> None:
    """Queue: wait for the op's workers, then its rows of y += result, in place; ends after its time whatever
    they do.

    Adds nothing if an op of this step has failed (`failed` >= its first number); if it is this one that
    fails, sets `failed` to its number and adds nothing.

    Args:
        y: [T, out_width], bfloat16, float16 or float32, at least as many rows as the op has; rows may be
            strided, columns may not.
        op: int32 [OP_WORDS] on y's device, as `write_ops` writes them.

    Raises:
        ValueError: y does not fit the exchange, or the op is none.
    """
    _check_rows(y, exchange.result, "y")
    _check_op(op)
    if y.is_cuda:
        from caraserve_kernels.host_exchange_kernels import launch_add_rows

        launch_add_rows(y, exchange.result, exchange.done, exchange.failed, op)
        return
    number, num_rows, first_number, low, high, late_us = op[:6].tolist()
    workers = low % (1 << 32) | high % (1 << 32) << 32
    if number and _wait_for_workers(exchange, number, first_number, workers, late_us / 1000):
        rows = y[:num_rows]
        rows.add_(exchange.result[: rows.numel()].view(rows.shape))


def _mask_words(workers: int) -> tuple[int, int]:
    """A mask of 64 bits as two int32, low and high."""
    low, high = workers & 0xFFFFFFFF, workers >> 32
    return low - (low >> 31 << 32), high - (high >> 31 << 32)


def _wait_for_workers(
    exchange: HostExchange, number: int, first_number: int, workers: int, late_ms: float
) -> bool:
    """Whether all have finished the op in time and no op of the step has failed."""
    done, failed = exchange.done.numpy(), exchange.failed.numpy()
    concerned = np.array([worker for worker in range(MAX_WORKERS) if workers >> worker & 1])
    began_ns = time.perf_counter_ns()
    while failed[0] < first_number:
        if (done[concerned] >= number).all():
            return True
        waited_ns = time.perf_counter_ns() - began_ns
        if waited_ns > late_ms * 1e6:
            failed[0] = number
        elif waited_ns > _SPIN_NS:
            time.sleep(_SLEEP_S)
    return False


def _check_rows(rows: Tensor, room: Tensor, name: str) -> None:
    if rows.dim() != 2 or rows.stride(1) != 1 or rows.shape[0] == 0:
        raise ValueError(f"{name} must be rows of elements side by side; got {tuple(rows.shape)}")
    if rows.numel() > room.numel():
        raise ValueError(f"{name} has {tuple(rows.shape)}; the exchange has room for {room.numel()} elements")


def _check_op(op: Tensor) -> None:
    if op.dtype != torch.int32 or op.shape != (OP_WORDS,) or not op.is_contiguous():
        raise ValueError(f"an op is int32 [{OP_WORDS}]; got {op.dtype} {tuple(op.shape)}")
