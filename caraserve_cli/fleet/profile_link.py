"""How long copies to a GPU take, and rows on their way to CPU workers and back. Fits nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from caraserve_kernels.host_exchange import (
    MAX_OP_NUMBER,
    MAX_WORKERS,
    OP_WORDS,
    HostExchange,
    add_rows,
    send_rows,
    write_ops,
)
from caraserve_kernels.link_clock import pace

# From a layer of a small adapter to several layers of a large one.
COPY_BYTES = tuple(2**power for power in range(16, 27, 2))
# Prompts whose rows are exchanged.
EXCHANGE_TOKENS = (1, 16, 64, 128, 256)
# Of each size after as many that are not counted; the median counts.
_REPEATS = 9
# For which the device is held before what is timed, so that the host has queued all of it by then.
_HOLD_US = 500
# Nobody answers here: the results are there before they are asked for.
_LATE_MS = 1.0


def measure_copies(device: torch.device) -> dict[int, float]:
    """Bytes of a copy from pinned memory to a GPU -> its median milliseconds."""
    source = torch.zeros(max(COPY_BYTES), dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=device)

    def copying(num_bytes: int) -> Callable[[], object]:
        return lambda: target[:num_bytes].copy_(source[:num_bytes], non_blocking=True)

    return {num_bytes: _median_ms(device, copying(num_bytes)) for num_bytes in COPY_BYTES}


def measure_exchange(device: torch.device, width: int, dtype: torch.dtype) -> dict[int, float]:
    """Bytes of rows sent and of results added, [tokens, width] each -> median milliseconds of both, without
    the worker between them."""
    num_elements = max(EXCHANGE_TOKENS) * width
    exchange = HostExchange(
        x=torch.zeros(num_elements, dtype=dtype, pin_memory=True),
        result=torch.zeros(num_elements, dtype=dtype, pin_memory=True),
        sent=torch.zeros(1, dtype=torch.int32, pin_memory=True),
        done=torch.full((MAX_WORKERS,), MAX_OP_NUMBER, dtype=torch.int32).pin_memory(),
        failed=torch.zeros(1, dtype=torch.int32, pin_memory=True),
    )
    words = torch.zeros(OP_WORDS, dtype=torch.int32)
    measured: dict[int, float] = {}
    for num_tokens in EXCHANGE_TOKENS:
        rows = torch.zeros(num_tokens, width, dtype=dtype, device=device)
        write_ops(words.view(1, OP_WORDS).numpy(), [0], num_tokens, 1, workers=1, late_ms=_LATE_MS)
        both_ms = _median_ms(device, _round_trip(rows, exchange, words.to(device)))
        measured[2 * rows.nbytes] = both_ms
    return measured


def _round_trip(rows: torch.Tensor, exchange: HostExchange, op: torch.Tensor) -> Callable[[], None]:
    def there_and_back() -> None:
        send_rows(rows, exchange, op)
        add_rows(rows, exchange, op)

    return there_and_back


def _median_ms(device: torch.device, queue: Callable[[], object]) -> float:
    """Median of a GPU's time for what a call queues, without the host's."""
    times_ms: list[float] = []
    clock = torch.zeros(1, dtype=torch.int64, device=device)
    torch.cuda.synchronize(device)
    with torch.cuda.device(device):
        for _ in range(2 * _REPEATS):
            before = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            after = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            pace(clock, _HOLD_US, 1e6)
            before.record()
            queue()
            after.record()
            after.synchronize()
            times_ms.append(float(before.elapsed_time(after)))
    return statistics.median(times_ms[_REPEATS:])
