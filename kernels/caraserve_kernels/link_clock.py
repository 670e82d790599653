"""A slower link than the machine has: one serial queue for each direction, at a chosen bandwidth.

A *clock* is int64 [1]: the time in nanoseconds until which the emulated link is taken. `pace` takes the link
for as long as some bytes would need,

    start = max(now, clock);  clock = start + num_bytes / bytes_per_s

and lets the stream (on a CPU: the caller) go on when that time has passed. It does so turn by turn,
`turn_bytes` each, so that what another stream sends meanwhile overtakes the rest of a long piece, as on a
link that is shared packet by packet.

The clocks' zeros are %globaltimer's on a device, `time.perf_counter_ns`'s on a CPU, where one process paces.
It emulates nothing but bandwidth; the true transfer comes on top of it, see `paced_rate`. It takes no part in
programmatic dependent launch: whoever comes after in the stream waits.
"""

from __future__ import annotations

import threading
import time

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import globaltimer

# What an int32 of nanoseconds holds; and a mistake in a rate is an error instead of a wait.
MAX_PIECE_NS = 2**31 - 1
# Bytes of a turn: at 3 GB/s what waits for one waits 22 us. Chosen, not measured.
TURN_BYTES = 64 * 1024
_cpu_turn = threading.Lock()


def pace(
    clock: Tensor,
    num_bytes: int,
    bytes_per_s: float,
    turn_bytes: int | None = TURN_BYTES,
    num_rows: Tensor | None = None,
) -> None:
    """Queue: take the emulated link for one piece, and wait until the piece would be through.

    Args:
        clock: int64 [1], zero at first, on the device whose stream is to wait.
        num_bytes: of the piece.
        bytes_per_s: of the emulated link; see `paced_rate`.
        turn_bytes: that go over at once; None for all, in front of the turns that others have not had yet.
        num_rows: int32 [1] on the same device, read when the link is taken: the piece has so many rows of
            `num_bytes` each, and with none there is no piece; None for one. The bounds of a piece of rows are
            the caller's to keep.

    Raises:
        ValueError: no clock, negative bytes, a rate or a turn not above 0, or a piece of more than two
            seconds.
    """
    if clock.dtype != torch.int64 or clock.shape != (1,):
        raise ValueError(f"a clock is int64 [1]; got {clock.dtype} {tuple(clock.shape)}")
    if num_bytes < 0 or not bytes_per_s > 0 or (turn_bytes is not None and turn_bytes < 1):
        raise ValueError(f"cannot move {num_bytes} bytes at {bytes_per_s} bytes/s, {turn_bytes} at once")
    piece_ns = round(num_bytes / bytes_per_s * 1e9)
    if piece_ns > MAX_PIECE_NS:
        raise ValueError(
            f"a piece of {num_bytes} bytes takes {piece_ns / 1e9:.1f} s: cut it, or mend the rate"
        )
    turn_ns = MAX_PIECE_NS
    if turn_bytes is not None:
        turn_ns = max(1, min(turn_ns, round(turn_bytes / bytes_per_s * 1e9)))
    if clock.is_cuda:
        _pace_kernel[(1,)](clock, num_rows, piece_ns, turn_ns, num_warps=1)
        return
    free_at = clock.numpy()
    if num_rows is not None:
        if not int(num_rows):
            return
        piece_ns *= int(num_rows)
    # At least once: who brings nothing comes after what is on its way, too.
    for begun_ns in range(0, max(1, piece_ns), turn_ns):
        with _cpu_turn:
            free_at[0] = max(time.perf_counter_ns(), int(free_at[0])) + min(turn_ns, piece_ns - begun_ns)
            end_ns = int(free_at[0])
        while (left_ns := end_ns - time.perf_counter_ns()) > 0:
            time.sleep(left_ns / 1e9)


def paced_rate(emulated_bytes_per_s: float, link_bytes_per_s: float) -> float:
    """The rate to give `pace` beside true transfers, so that both together move at the emulated rate.

    1 / emulated = 1 / link + 1 / paced. ValueError if the link is not faster than what it is to emulate.
    """
    if not 0 < emulated_bytes_per_s < link_bytes_per_s:
        raise ValueError(f"a link of {link_bytes_per_s} bytes/s cannot emulate {emulated_bytes_per_s}")
    return 1 / (1 / emulated_bytes_per_s - 1 / link_bytes_per_s)


@triton.jit(do_not_specialize=["piece_ns", "turn_ns"])
def _pace_kernel(clock_ptr, num_rows_ptr, piece_ns, turn_ns):  # type: ignore[no-untyped-def]
    # At least once: who brings nothing comes after what is on its way, too.
    end_ns = tl.maximum(piece_ns, 1)
    if num_rows_ptr is not None:
        piece_ns *= tl.load(num_rows_ptr)
        end_ns = piece_ns
    begun_ns = 0
    while begun_ns < end_ns:
        length_ns = tl.minimum(turn_ns, piece_ns - begun_ns).to(tl.int64)
        # Between these two others may add theirs: turns still follow one another without overlap.
        tl.atomic_max(clock_ptr, globaltimer())
        end = tl.atomic_add(clock_ptr, length_ns) + length_ns
        while globaltimer() < end:
            _sleep()
        begun_ns += turn_ns


@triton.jit
def _sleep():  # type: ignore[no-untyped-def]
    """A fifth of a microsecond: less than the timer of some devices resolves."""
    tl.inline_asm_elementwise(
        "nanosleep.u32 200; mov.b32 $0, 0;", "=r", [], dtype=tl.int32, is_pure=False, pack=1
    )
