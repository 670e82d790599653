"""The adapters of a simulated replica: in host memory, all of them or those that were read from a disk, and
one link brings them to the device, one after the other. No bytes: only when they have come.

What slides within the device's pool takes no time here: two orders of magnitude less than a copy to it
(`engine.residency`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from caraserve_cli.core import AdapterInfo, ColdStart
from caraserve_cli.perf.link import LinkModel
from caraserve_cli.simulation.host_shelf import HostShelf
from caraserve_cli.step_plan import AdapterLoad


class Coming(NamedTuple):
    """Copies under way, of one adapter or of several together, layer by layer.

    Attributes:
        begin_ms: when the link began with them.
        copy_ms: of all of them, on the link.
        ready_ms: when all have come.
    """

    begin_ms: float
    copy_ms: float
    ready_ms: float


class SimulatedDepot:
    """Implements `engine.cold_starts.AdapterSupply` for one replica on virtual time.

    Args:
        link: None where nothing is copied: adapters are used where they are.
        clock_ms: the time now.
        num_workers: that assist cold starts.
        max_assisted_tokens: that they can be given in one step.
        shelf: the host memory; None where all adapters are there.
    """

    def __init__(
        self,
        link: LinkModel | None,
        clock_ms: Callable[[], float],
        num_workers: int,
        max_assisted_tokens: int,
        shelf: HostShelf | None = None,
    ) -> None:
        self._shelf = shelf
        self._link, self._clock_ms = link, clock_ms
        self.free_workers = num_workers
        self.most_assisted_tokens = max_assisted_tokens if num_workers else 0
        self.link_bytes_per_ms: float | None = None  # the profile's are right
        self.free_ms = 0.0
        self.num_loads = 0
        self._coming: dict[int, Coming] = {}  # adapter slot → its copies
        self._loads_ms: dict[int, float] = {}  # adapter slot → how long it was on its way, of those that came

    # What happens

    def load(self, loads: Iterable[tuple[AdapterLoad, AdapterInfo]]) -> None:
        """Begin the copies of a plan: those that somebody waits for as a whole one after the other, the
        others then together, layer by layer, those for a step beside the next one last."""
        together: dict[bool, list[tuple[AdapterLoad, AdapterInfo]]] = {False: [], True: []}
        for load, info in loads:
            self.num_loads += 1
            if load.is_held or load.how in (ColdStart.ON_DEMAND, ColdStart.ON_DEMAND_BLOCKING):
                self._copy([load.adapter_slot], info.num_bytes)
            else:
                together[load.is_beside].append((load, info))
        for of_a_step in filter(None, together.values()):
            slots = [load.adapter_slot for load, _ in of_a_step]
            self._copy(slots, sum(info.num_bytes for _, info in of_a_step))

    def delay(self, adapter_slot: int, more_ms: float) -> None:
        """What CPU workers send over the link comes before the rest of an adapter."""
        coming = self._coming[adapter_slot]
        self._coming[adapter_slot] = coming._replace(ready_ms=coming.ready_ms + more_ms)
        self.free_ms = max(self.free_ms, coming.ready_ms + more_ms)

    def keep_link(self, more_ms: float) -> None:
        """What CPU workers send comes before what is loaded next."""
        self.free_ms = max(self.free_ms, self._clock_ms()) + more_ms

    def evict(self, adapter_slot: int) -> None:
        """Forget what is in a slot."""
        self._coming.pop(adapter_slot, None)
        self._loads_ms.pop(adapter_slot, None)

    def _copy(self, adapter_slots: Iterable[int], num_bytes: int) -> None:
        now_ms = self._clock_ms()
        if self._link is None:
            coming = Coming(now_ms, 0.0, now_ms)
        else:
            begin_ms = max(now_ms, self.free_ms) + self._link.latency_ms
            copy_ms = num_bytes / self._link.bytes_per_ms
            coming = Coming(begin_ms, copy_ms, begin_ms + copy_ms)
            self.free_ms = coming.ready_ms
        for slot in adapter_slots:
            self._coming[slot] = coming
            self._loads_ms[slot] = coming.ready_ms - now_ms

    # What is asked

    def coming(self, adapter_slot: int) -> Coming | None:
        """The copies of what is in a slot; None if all has come."""
        coming = self._coming.get(adapter_slot)
        if coming is not None and coming.ready_ms <= self._clock_ms():
            del self._coming[adapter_slot]
            return None
        return coming

    def next_arrival_ms(self) -> float:
        """When the next of the copies under way has come; infinite without any."""
        now_ms = self._clock_ms()
        later = (coming.ready_ms for coming in self._coming.values() if coming.ready_ms > now_ms)
        return min(later, default=float("inf"))

    def is_ready(self, adapter: str) -> bool:
        """See `AdapterSupply`."""
        return self._shelf is None or self._shelf.is_ready(adapter)

    def ready_ms(self, adapter: str) -> float:
        """See `AdapterSupply`."""
        return self._clock_ms() if self._shelf is None else self._shelf.ready_ms(adapter)

    def next_read_ms(self) -> float:
        """When the next adapter comes to host memory; infinite where none does."""
        return float("inf") if self._shelf is None else self._shelf.next_ready_ms()

    def has_arrived(self, adapter_slot: int) -> bool:
        """See `AdapterSupply`."""
        return self.coming(adapter_slot) is None

    def load_ms(self, adapter_slot: int) -> float | None:
        """See `AdapterSupply`."""
        return None if self._link is None else self._loads_ms.get(adapter_slot)

    def can_assist(self, adapter: str) -> bool:
        """See `AdapterSupply`."""
        return self.free_workers > 0

    @property
    def link_backlog_ms(self) -> float:
        """See `AdapterSupply`."""
        return max(0.0, self.free_ms - self._clock_ms())
