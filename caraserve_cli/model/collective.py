"""How the processes that hold one base together put their parts together.

`Alone` is for the one process that has all of it. `ProcessGroup` is torch.distributed's: gloo between
processes on CPUs, NCCL between GPUs. All processes must make the same calls in the same order; on a GPU
they are queued on the current stream like any other work, so that CUDA graphs hold them. Knows tensors,
no layers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import FileStore

from caraserve_cli.errors import LostProcessError
from caraserve_cli.shard import Shard

# All are there when they are told to meet; whoever is not has died since.
_MEETING = timedelta(seconds=60)
# Processes of one machine: gloo would look up the host's name, which need not lead anywhere. NVLink's
# multicast (NVLS) is left off: where a container may not use it, NCCL does not start.
_ENVIRONMENT = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_NVLS_ENABLE": "0"}


class Collective(Protocol):
    """What a decoder, and who runs it, need of the other processes."""

    def all_reduce_(self, summand: Tensor) -> None:
        """Put the sum of everyone's `summand`, contiguous, of equal shape, in its place.

        Raises:
            LostProcessError: another process has ended.
        """
        ...

    def gather_columns(self, columns: Tensor) -> Tensor:
        """Everyone's `columns` [rows, n], of equal shape, side by side: [rows, processes * n].

        Raises:
            LostProcessError: another process has ended.
        """
        ...

    def broadcast_(self, values: Tensor) -> None:
        """Put what process 0 has in the place of everyone's `values`.

        Raises:
            LostProcessError: another process has ended.
        """
        ...


class Alone:
    """One process that has everything."""

    def all_reduce_(self, summand: Tensor) -> None:
        """The sum of one summand is there."""

    def gather_columns(self, columns: Tensor) -> Tensor:
        """All columns are there."""
        return columns

    def broadcast_(self, values: Tensor) -> None:
        """Nobody else has any."""


class ProcessGroup:
    """The processes of one base on one machine, a GPU each or all on the CPU. One a process at a time.

    Args:
        shard: what this process holds.
        device: where.
        meeting_place: a file that all of them can write and nobody else uses.
    """

    def __init__(self, shard: Shard, device: torch.device, meeting_place: Path) -> None:
        self._shard, self._device, self._meeting_place = shard, device, meeting_place

    def meet(self) -> None:
        """Find the others, who must do the same now.

        Raises:
            LostProcessError: one does not come.
        """
        store = FileStore(str(self._meeting_place), self._shard.tp_size)
        store.set_timeout(_MEETING)
        with _environment(), _told_of_losses():
            dist.init_process_group(
                "nccl" if self._device.type == "cuda" else "gloo",
                store=store,
                rank=self._shard.tp_index,
                world_size=self._shard.tp_size,
                device_id=self._device if self._device.type == "cuda" else None,
            )

    def break_off(self) -> None:
        """Have nothing on this GPU wait for a process that has ended. From any thread; it may return only
        when the graphs are gone that hold collectives."""
        if (group := dist.group.WORLD) is not None:
            group.abort()

    def part(self) -> None:
        """Leave the others; nothing is done if they never met. Nothing must be under way, and no graph must
        hold collectives any more: NCCL waits for its end."""
        if dist.is_initialized():
            if self._device.type == "cuda":
                # NCCL's ordinary end is one more thing that all do together, and the others only end.
                self.break_off()
            dist.destroy_process_group()

    def all_reduce_(self, summand: Tensor) -> None:
        """See `Collective`."""
        with _told_of_losses():
            dist.all_reduce(summand)

    def gather_columns(self, columns: Tensor) -> Tensor:
        """See `Collective`."""
        num_rows, num_columns = columns.shape
        gathered = columns.new_empty(self._shard.tp_size, num_rows, num_columns)
        if not num_rows:
            return gathered.view(0, self._shard.tp_size * num_columns)  # a step of prompts that go on
        with _told_of_losses():
            dist.all_gather(list(gathered.unbind()), columns.contiguous())
        return gathered.transpose(0, 1).reshape(num_rows, self._shard.tp_size * num_columns)

    def broadcast_(self, values: Tensor) -> None:
        """See `Collective`."""
        with _told_of_losses():
            dist.broadcast(values, src=0)


@contextmanager
def _told_of_losses() -> Iterator[None]:
    """Both backends raise a RuntimeError of their own when a process is gone."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0]
        raise LostProcessError(f"the processes of --tensor-parallel lost each other ({reason})") from error


@contextmanager
def _environment() -> Iterator[None]:
    """What both backends read when they start; the user's own settings go first."""
    missing = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]
