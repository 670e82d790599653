"""The memory of an exchange between a stream and CPU workers: one memfd, mapped by everyone.

Control words first, each kind in cache lines of its own; then x; then the result. What the words mean is
`caraserve_kernels.host_exchange`'s. Knows no processes.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass

import torch
from torch import Tensor

from caraserve_kernels.host_exchange import MAX_WORKERS, HostExchange

_PAGE_BYTES = 4096
_SENT_BYTE = 0
_FAILED_BYTE = 64
_DONE_BYTE = 128
# cudaHostRegisterPortable | cudaHostRegisterMapped: kernels of any device address it.
_CUDA_REGISTER_FLAGS = 0x01 | 0x02


@dataclass(frozen=True, slots=True)
class ExchangeLayout:
    """Where x and the result lie.

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
    def num_bytes(self) -> int:
        return self.result_byte + _whole_pages(self.max_rows * self.max_out_width * self.dtype.itemsize)


class ExchangeMemory:
    """One mapping of an exchange's memfd; `create` makes the memfd, `attach` maps one that is there.

    Attributes:
        fd: of the memory; closed by `close`.
        layout: of x and the result.
        exchange: the tensors. They keep the mapping alive; it goes with the last of them.
        sent, done, failed: the words of the same names, as memoryviews of int32, which cost less to read.
    """

    def __init__(self, fd: int, layout: ExchangeLayout, *, pinned: bool) -> None:
        self.fd, self.layout = fd, layout
        memory = mmap.mmap(fd, layout.num_bytes)
        words = memoryview(memory)[:_PAGE_BYTES].cast("i")
        self.sent = words[_SENT_BYTE // 4 :][:1]
        self.failed = words[_FAILED_BYTE // 4 :][:1]
        self.done = words[_DONE_BYTE // 4 :][:MAX_WORKERS]
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
        torch.cuda.check_error(cudart.cudaHostRegister(address, self.layout.num_bytes, _CUDA_REGISTER_FLAGS))
        self._pinned_address = address


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES
