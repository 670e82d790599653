"""The adapters of the first of several processes that hold a base: what is done to them is noted, for the
others to do the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from caraserve_cli.adapters.transfer import Stall
from caraserve_cli.engine.depot import AdapterDepot
from caraserve_cli.engine.orders import BeginCopies, Followers, Prefetch
from caraserve_cli.step_plan import AdapterEviction, AdapterLoad, AdapterLoan, AdapterMove, PoolOp


class LeadingAdapters:
    """Implements `depot.AdapterDepot`. What has arrived, and how fast, is as this process sees it: the
    others wait for their own copies where they need them. CPU workers, which compute with whole adapters,
    there are none.

    Args:
        own: of this process.
        followers: the others.
    """

    num_lost_workers = 0
    free_workers = 0
    most_assisted_tokens = 0

    def __init__(self, own: AdapterDepot, followers: Followers) -> None:
        self._own, self._followers = own, followers
        self._pool_ops: list[PoolOp] = []
        self._wished: tuple[str, ...] = ()

    def take_pool_ops(self) -> tuple[PoolOp, ...]:
        """What was done since this was last called."""
        taken, self._pool_ops = tuple(self._pool_ops), []
        return taken

    def load(self, load: AdapterLoad) -> None:
        """See `AdapterDepot`. Whatever is refused here the others refuse too, and are not told of."""
        self._own.load(load)
        self._pool_ops.append(load)

    def lend(self, loan: AdapterLoan) -> None:
        """See `AdapterDepot`. Nothing is lent where there are no CPU workers."""
        raise AssertionError(f"adapter '{loan.adapter}' is lent, and there are no CPU workers")

    def evict(self, adapter_slot: int) -> None:
        """See `AdapterDepot`."""
        self._own.evict(adapter_slot)
        self._pool_ops.append(AdapterEviction(adapter_slot))

    def move(self, move: AdapterMove) -> None:
        """See `AdapterDepot`."""
        self._own.move(move)
        self._pool_ops.append(move)

    def begin_copies(self) -> None:
        """See `AdapterDepot`."""
        self._followers.tell(BeginCopies(self.take_pool_ops()))
        self._own.begin_copies()

    def prefetch(self, adapters: Sequence[str]) -> None:
        """See `AdapterDepot`."""
        wished = tuple(adapters)
        if wished != self._wished:
            self._wished = wished
            self._followers.tell(Prefetch(wished))
        self._own.prefetch(adapters)

    def wait(self) -> None:
        """See `AdapterDepot`."""
        self._followers.check()
        self._own.wait()

    def is_ready(self, adapter: str) -> bool:
        """See `AdapterSupply`."""
        return self._own.is_ready(adapter)

    def ready_ms(self, adapter: str) -> float:
        """See `AdapterSupply`."""
        return self._own.ready_ms(adapter)

    def has_arrived(self, adapter_slot: int) -> bool:
        """See `AdapterSupply`."""
        return self._own.has_arrived(adapter_slot)

    def load_ms(self, adapter_slot: int) -> float | None:
        """See `AdapterSupply`."""
        return self._own.load_ms(adapter_slot)

    def take_stall(self) -> Stall:
        """See `AdapterDepot`."""
        return self._own.take_stall()

    def can_assist(self, adapter: str) -> bool:
        """See `AdapterSupply`."""
        return False

    @property
    def copied_bytes(self) -> int:
        """See `AdapterDepot`; of this process's parts."""
        return self._own.copied_bytes

    @property
    def link_bytes_per_ms(self) -> float | None:
        """See `AdapterSupply`."""
        return self._own.link_bytes_per_ms

    @property
    def link_backlog_ms(self) -> float:
        """See `AdapterSupply`."""
        return self._own.link_backlog_ms
