"""What the first of several processes that hold a base tells the others to do.

They do the same as it, in the same order: to their adapters, which lie in the same places everywhere, and
to their parts of each step. Who plans that is told of nobody's parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.engine.cpu_batch import CpuBatch
from caraserve_cli.engine.gpu_batch import GpuBatch
from caraserve_cli.engine.gpu_runner import GpuRunner
from caraserve_cli.engine.model_runner import ModelRunner
from caraserve_cli.step_plan import AdapterEviction, AdapterLoad, AdapterMove, PoolOp


class WarmUp(NamedTuple):
    """Compile and capture what is missing; see `GpuRunner.warm_up`."""

    used_groups: frozenset[int]


class Prefetch(NamedTuple):
    """Read these adapters into host memory."""

    adapters: tuple[str, ...]


class BeginCopies(NamedTuple):
    """Do this to the adapters, and begin to copy them."""

    pool_ops: tuple[PoolOp, ...]


class ComputeStep(NamedTuple):
    """Do this to the adapters, then compute this."""

    pool_ops: tuple[PoolOp, ...]
    batch: CpuBatch | GpuBatch


Order: TypeAlias = WarmUp | Prefetch | BeginCopies | ComputeStep


class Followers(Protocol):
    """The other processes, as the first one's runner needs them."""

    def tell(self, order: Order) -> None:
        """Have all of them do something next.

        Raises:
            LostProcessError: one has ended.
        """
        ...

    def check(self) -> None:
        """Raises LostProcessError if one has ended."""
        ...

    def explain(self, error: Exception) -> Exception:
        """What a user should know of an error in what all compute together: a LostProcessError that says who
        has ended, and why; the error itself if nobody has."""
        ...


@dataclass(frozen=True, slots=True)
class Follower:
    """Does as it is told.

    Attributes:
        runner: of this process's part.
        host_store: of its parts of the adapters.
    """

    runner: ModelRunner | GpuRunner
    host_store: HostStore

    def obey(self, order: Order) -> None:
        """Do one thing.

        Raises:
            AdapterError: an adapter's files have changed since the first process read them.
            LostProcessError: another process has ended.
        """
        match order:
            case WarmUp():
                if isinstance(self.runner, GpuRunner):
                    self.runner.warm_up(order.used_groups)
            case Prefetch():
                self.host_store.prefetch(order.adapters)
            case BeginCopies():
                self._apply(order.pool_ops)
                self.runner.adapters.begin_copies()
            case ComputeStep():
                self._apply(order.pool_ops)
                self._compute(order.batch)

    def _apply(self, pool_ops: Sequence[PoolOp]) -> None:
        adapters = self.runner.adapters
        for op in pool_ops:
            match op:
                case AdapterLoad():
                    adapters.load(op)
                case AdapterMove():
                    adapters.move(op)
                case AdapterEviction():
                    adapters.evict(op.adapter_slot)

    def _compute(self, batch: CpuBatch | GpuBatch) -> None:
        if isinstance(self.runner, GpuRunner):
            assert isinstance(batch, GpuBatch)
            self.runner.follow(batch)
        else:
            assert isinstance(batch, CpuBatch)
            self.runner.follow(batch)
