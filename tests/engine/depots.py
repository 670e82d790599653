"""Depots for runners that make tokens up: where adapters are is written down, nothing is copied."""

from __future__ import annotations

from collections.abc import Sequence

from caraserve_cli.adapters.transfer import Stall
from caraserve_cli.engine.cold_starts import InPlace
from caraserve_cli.step_plan import AdapterLoad, AdapterLoan, AdapterMove


class StillDepot(InPlace):
    """Everything that is loaded is there."""

    copied_bytes = 0
    num_lost_workers = 0

    def take_stall(self) -> Stall:
        return Stall()

    def load(self, load: AdapterLoad) -> None: ...

    def lend(self, loan: AdapterLoan) -> None: ...

    def evict(self, adapter_slot: int) -> None: ...

    def move(self, move: AdapterMove) -> None: ...

    def begin_copies(self) -> None: ...

    def prefetch(self, adapters: Sequence[str]) -> None: ...

    def wait(self) -> None: ...


class HandDepot(StillDepot):
    """A depot whose adapters arrive when the test says so.

    Attributes:
        ready: adapters that are in host memory; None for all.
        been_ready_ms: for how long an adapter has been there, where not since right now.
        arrived: slots whose copies have come; those of other slots are under way.
        prefetched: what was asked for last.
        took_ms: how long each load is on its way.
    """

    def __init__(self) -> None:
        self.ready: set[str] | None = None
        self.been_ready_ms: dict[str, float] = {}
        self.arrived: set[int] = set()
        self.free_workers = 4
        self.most_assisted_tokens = 1024
        self.link_backlog_ms = 0.0
        self.prefetched: list[str] = []
        self.took_ms: float | None = None

    def is_ready(self, adapter: str) -> bool:
        return self.ready is None or adapter in self.ready

    def ready_ms(self, adapter: str) -> float:
        return self.been_ready_ms.get(adapter, 0.0)

    def has_arrived(self, adapter_slot: int) -> bool:
        return adapter_slot in self.arrived

    def load_ms(self, adapter_slot: int) -> float | None:
        return self.took_ms

    def can_assist(self, adapter: str) -> bool:
        return True

    def prefetch(self, adapters: Sequence[str]) -> None:
        self.prefetched = list(adapters)
