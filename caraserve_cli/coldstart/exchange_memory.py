"""The memory of an exchange between a stream and CPU workers: one memfd, mapped by everyone.

Control words first, each kind in cache lines of its own; then x; then the result. What the words mean is
`caraserve_kernels.host_exchange`'s. Behind these is what is between workers alone, and never the device's:
the words `shrunk`, and h, the LoRA rows of an op, for modules that several of them share. Knows no processes.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from caraserve_cli.adapters.packing import MAX_LORA_RANK
from caraserve_kernels.host_exchange import MAX_WORKERS, HostExchange
from caraserve_kernels.lora_layout import MAX_GROUP_MODULES

_PAGE_BYTES = 4096
_SENT_BYTE = 0
_FAILED_BYTE = 64
_DONE_BYTE = 128
# Each worker's word is in a cache line of its own: its peers look at it while others raise theirs.
_SHRUNK_STRIDE = 16
# Rows of h begin at cache lines, and so do most slices of them: they are written side by side.
_H_ALIGN_RANKS = 32
# cudaHostRegisterPortable | cudaHostRegisterMapped: kernels of any device address it.
_CUDA_REGISTER_FLAGS = 0x01 | 0x02


@dataclass(frozen=True, slots=True)
class ExchangeLayout:
    """Where x and the result lie, and what the workers have between them.

    Attributes:
        max_rows: tokens of one op at most.
        max_in_width: of x.
        max_out_width: of the result, all modules of a fused group side by side.
        dtype: of both, the run's.
    """

    max_rows: int
    max_in_width: int
    max_out_width: int
    dtype: torch.dtype

    @property
    def x_byte(self) -> int:
        return _PAGE_BYTES

    @property
    def result_byte(self) -> int:
        return self.x_byte + _whole_pages(self.max_rows * self.max_in_width * self.dtype.itemsize)

    @property
    def shrunk_byte(self) -> int:
        """Also the end of what the device addresses."""
        return self.result_byte + _whole_pages(self.max_rows * self.max_out_width * self.dtype.itemsize)

    @property
    def h_byte(self) -> int:
        return self.shrunk_byte + _whole_pages(4 * _SHRUNK_STRIDE * MAX_WORKERS)

    @property
    def h_bytes(self) -> int:
        """Room for the largest ranks in the widest dtype; pages that no op needs are never touched."""
        return self.max_rows * MAX_GROUP_MODULES * MAX_LORA_RANK * torch.float32.itemsize

    @property
    def num_bytes(self) -> int:
        return self.h_byte + _whole_pages(self.h_bytes)


class ExchangeMemory:
    """One mapping of an exchange's memfd; `create` makes the memfd, `attach` maps one that is there.

    Attributes:
        fd: of the memory; closed by `close`.
        layout: of x and the result.
        exchange: the tensors. They keep the mapping alive; it goes with the last of them.
        sent, done, failed: the words of the same names, as memoryviews of int32, which cost less to read.
        shrunk: int32 [MAX_WORKERS], number of the last op that each worker shares a module of, and has
            computed its LoRA rows of; another memoryview.
    """

    def __init__(self, fd: int, layout: ExchangeLayout, *, pinned: bool) -> None:
        self.fd, self.layout = fd, layout
        memory = mmap.mmap(fd, layout.num_bytes)
        words = memoryview(memory)[:_PAGE_BYTES].cast("i")
        self.sent = words[_SENT_BYTE // 4 :][:1]
        self.failed = words[_FAILED_BYTE // 4 :][:1]
        self.done = words[_DONE_BYTE // 4 :][:MAX_WORKERS]
        shrunk_words = memoryview(memory)[layout.shrunk_byte : layout.h_byte].cast("i")
        self.shrunk = shrunk_words[::_SHRUNK_STRIDE][:MAX_WORKERS]
        self._h = torch.frombuffer(memory, dtype=torch.uint8, count=layout.h_bytes, offset=layout.h_byte)
        x_elements, result_elements = (
            layout.max_rows * width for width in (layout.max_in_width, layout.max_out_width)
        )
        self.exchange = HostExchange(
            x=torch.frombuffer(memory, dtype=layout.dtype, count=x_elements, offset=layout.x_byte),
            result=torch.frombuffer(
                memory, dtype=layout.dtype, count=result_elements, offset=layout.result_byte
            ),
            sent=torch.frombuffer(memory, dtype=torch.int32, count=1, offset=_SENT_BYTE),
            done=torch.frombuffer(memory, dtype=torch.int32, count=MAX_WORKERS, offset=_DONE_BYTE),
            failed=torch.frombuffer(memory, dtype=torch.int32, count=1, offset=_FAILED_BYTE),
        )
        self._pinned_address: int | None = None
        if pinned:
            self._pin(self.exchange.sent.data_ptr() - _SENT_BYTE)

    @staticmethod
    def create(
        max_rows: int, max_in_width: int, max_out_width: int, dtype: torch.dtype, *, pinned: bool
    ) -> ExchangeMemory:
        """Make the memory, its words 0.

        Args:
            max_rows: tokens of one op at most.
            max_in_width: of the widest x.
            max_out_width: of the widest result, all modules of a fused group side by side.
            dtype: of both.
            pinned: whether to register it with CUDA, so that kernels address it.

        Raises:
            OSError: there is no memory for it.
            RuntimeError: CUDA does not register it.
        """
        layout = ExchangeLayout(max_rows, max_in_width, max_out_width, dtype)
        fd = os.memfd_create("caraserve-exchange")
        try:
            os.ftruncate(fd, layout.num_bytes)
            return ExchangeMemory(fd, layout, pinned=pinned)
        except BaseException:
            os.close(fd)
            raise

    @staticmethod
    def attach(fd: int, layout: ExchangeLayout) -> ExchangeMemory:
        """Map memory that another process has made; `fd` is then this object's."""
        return ExchangeMemory(fd, layout, pinned=False)

    @property
    def max_rows(self) -> int:
        """Tokens of one op at most."""
        return self.layout.max_rows

    def op_flops(self, num_tokens: int, lora_rank: int) -> float:
        """Operations of the largest op that can be exchanged, were the ranks of its modules `lora_rank`
        together: an upper bound of what the workers have to do for one op."""
        return 2.0 * num_tokens * lora_rank * (self.layout.max_in_width + self.layout.max_out_width)

    def rows(self, num_rows: int, in_width: int, out_width: int) -> tuple[Tensor, Tensor]:
        """x [num_rows, in_width] and result [num_rows, out_width] of an op, as views."""
        x, result = self.exchange.x, self.exchange.result
        return (
            x[: num_rows * in_width].view(num_rows, in_width),
            result[: num_rows * out_width].view(num_rows, out_width),
        )

    def h(self, num_rows: int, num_ranks: int, compute_dtype: torch.dtype) -> Tensor:
        """LoRA rows of an op [num_rows, num_ranks], the ranks of a fused group's modules side by side, as a
        view; in the dtype that the workers compute in. Nothing of it is registered with CUDA."""
        row_ranks = -(-num_ranks // _H_ALIGN_RANKS) * _H_ALIGN_RANKS
        num_bytes = num_rows * row_ranks * compute_dtype.itemsize
        return self._h[:num_bytes].view(compute_dtype).view(num_rows, row_ranks)[:, :num_ranks]

    def close(self) -> None:
        """Take it back from CUDA and close the fd; the tensors can still be read. A second call does nothing.
        Nothing on the device must still use it."""
        if self._pinned_address is not None:
            cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            torch.cuda.check_error(cudart.cudaHostUnregister(self._pinned_address))
            self._pinned_address = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _pin(self, address: int) -> None:
        cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        num_bytes = self.layout.shrunk_byte
        torch.cuda.check_error(cudart.cudaHostRegister(address, num_bytes, _CUDA_REGISTER_FLAGS))
        self._pinned_address = address


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES
