"""Rows that a kernel reads from host memory itself.

Semantics, for int32 tensors of one shape [rows, columns]:

    target[row, column] = source[row, column]

`source` is contiguous, in pinned memory; the rows of `target`, on the device, may be strided.

A copy would be made by the engine that makes all copies to a device, in the order in which they are queued:
what a step begins with would come after the adapters that were queued before it, and would keep those behind
it until the step before has ended, for it must not overwrite what that step reads. A kernel is in no such
queue. It reads as all kernels do: what the host has written before the launch. It takes no part in
programmatic dependent launch: what is launched behind it begins when all of it has been read.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# A read takes about a microsecond, in which PCIe 5.0 x16 moves 64 KiB: so much has to be on its way, in 4 KiB
# a program. Chosen, not measured.
_BLOCK_WORDS = 1024
_MOST_PROGRAMS = 64
_NUM_WARPS = 4
# A thread reads so many side by side: reads that no cache serves would each fetch the others' words too.
QUAD_WORDS = 4


class HostWords:
    """int32 words that the host writes down and a kernel reads when its turn comes. Two buffers take turns,
    so that the next words can be written down while the last ones wait to be read.

    Args:
        num_words: of a buffer.
        device: where they are read to.
    """

    def __init__(self, num_words: int, device: torch.device) -> None:
        is_cuda, num_padded = device.type == "cuda", triton.cdiv(num_words, QUAD_WORDS) * QUAD_WORDS
        padded = [torch.zeros(num_padded, dtype=torch.int32, pin_memory=is_cuda) for _ in range(2)]
        self._buffers = [buffer[:num_words] for buffer in padded]
        self._are_read: list[torch.cuda.Event] = []
        if is_cuda:
            self._are_read = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def begin(self) -> Tensor:
        """The buffer to write to, [num_words], in which former words still are; waits until they are read."""
        self._buffers.reverse()
        self._are_read.reverse()
        if self._are_read:
            self._are_read[0].synchronize()
        return self._buffers[0]

    def read_to(self, target: Tensor, first: int = 0) -> None:
        """Queue, after `begin`: the words written down from `first` on, a multiple of QUAD_WORDS, go to
        `target`, row by row; see `read_host_rows`. More than once for what lies apart."""
        read_host_rows(target, self._buffers[0][first : first + target.numel()].view(target.shape))
        if self._are_read:
            self._are_read[0].record()


def read_host_rows(target: Tensor, source: Tensor) -> None:
    """Queue: target[:] = source.

    Args:
        target: int32 [rows, columns] on the device; rows may be strided, columns may not.
        source: int32 [rows, columns], contiguous; where there is a GPU pinned, and in memory of whole quads
            of words, from where it begins. It must keep its content until what was queued has been done.

    Raises:
        ValueError: the two are not such tensors.
    """
    if target.dtype != torch.int32 or source.dtype != torch.int32:
        raise ValueError(f"rows must be int32; got {source.dtype} for {target.dtype}")
    if target.dim() != 2 or target.shape != source.shape:
        raise ValueError(f"rows {tuple(source.shape)} for {tuple(target.shape)}")
    if not source.is_contiguous() or (target.numel() and target.stride(1) != 1):
        raise ValueError("the source must be contiguous, and the target's columns side by side")
    if not target.is_cuda:
        target.copy_(source)
    elif source.numel():
        launch_read_host_rows(target, source)


def launch_read_host_rows(target: Tensor, source: Tensor) -> None:
    """Run the Triton kernel.

    Raises:
        ValueError: the source does not lie in whole quads.
    """
    num_words = source.numel()
    quad_bytes = QUAD_WORDS * source.itemsize
    left_bytes = source.untyped_storage().nbytes() - source.storage_offset() * source.itemsize
    if source.data_ptr() % quad_bytes or left_bytes < triton.cdiv(num_words, QUAD_WORDS) * quad_bytes:
        raise ValueError(f"the source must begin with {quad_bytes} whole bytes, and its memory end with such")
    grid = (min(_MOST_PROGRAMS, triton.cdiv(num_words, _BLOCK_WORDS)),)
    _read_kernel[grid](
        *(source, target, num_words, source.shape[1], target.stride(0)),
        block_words=_BLOCK_WORDS,
        quad_words=QUAD_WORDS,
        num_warps=_NUM_WARPS,
    )


# Numbers change from step to step, and nothing may be compiled then.
@triton.jit(do_not_specialize=["num_words", "columns", "target_stride"])  # type: ignore[untyped-decorator]
def _read_kernel(  # type: ignore[no-untyped-def]
    source_ptr,
    target_ptr,
    num_words,
    columns,
    target_stride,
    block_words: tl.constexpr,
    quad_words: tl.constexpr,
):
    num_quads = tl.cdiv(num_words, quad_words)
    for block in range(tl.program_id(0), tl.cdiv(num_words, block_words), tl.num_programs(0)):
        at = block * block_words + tl.arange(0, block_words)
        # Past what a cache may have kept of an earlier step; whole quads, so that each is one read.
        words = tl.load(source_ptr + at, mask=at // quad_words < num_quads, volatile=True)
        row = at // columns
        tl.store(target_ptr + row * target_stride + at % columns, words, mask=at < num_words)
