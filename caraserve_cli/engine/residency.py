"""Which adapters are on the device: slots, bytes, pins.

Plans only; `adapters.device_pool` moves the weights. Knows sizes, not tensors: the simulator runs it too.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from caraserve_cli.core import AdapterInfo


@dataclass(slots=True)
class _Resident:
    adapter_slot: int
    num_bytes: int
    num_users: int = 0


@dataclass(frozen=True, slots=True)
class Acquired:
    """What it takes to use an adapter: its slot, whether it must be loaded, whom it displaces."""

    adapter_slot: int
    needs_load: bool
    evicted_slots: tuple[int, ...] = ()


class AdapterResidency:
    """Adapters within `capacity_bytes`; those in use are pinned, the others leave oldest first."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first
        self._free_slots: list[int] = []
        self._num_slots = 0
        self._used_bytes = 0
        self._pinned_bytes = 0

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def is_resident(self, adapter: str) -> bool:
        return adapter in self._residents

    def can_acquire(self, info: AdapterInfo) -> bool:
        """Whether `acquire` would find room now."""
        return self.is_resident(info.name) or self._pinned_bytes + info.num_bytes <= self.capacity_bytes

    def acquire(self, info: AdapterInfo) -> Acquired:
        """Pin an adapter for one more user, making room if need be.

        Raises:
            ValueError: there is no room (callers ask `can_acquire` first).
        """
        if not self.can_acquire(info):
            raise ValueError(f"no room for adapter '{info.name}'")
        resident = self._residents.get(info.name)
        needs_load = resident is None
        evicted = self._make_room(info.num_bytes) if needs_load else ()
        if resident is None:
            resident = _Resident(self._take_slot(), info.num_bytes)
            self._residents[info.name] = resident
            self._used_bytes += info.num_bytes
        if resident.num_users == 0:
            self._pinned_bytes += resident.num_bytes
        resident.num_users += 1
        self._residents.move_to_end(info.name)
        return Acquired(resident.adapter_slot, needs_load, evicted)

    def release(self, adapter: str) -> None:
        """One user less; the adapter stays until its room is needed."""
        resident = self._residents[adapter]
        resident.num_users -= 1
        if resident.num_users == 0:
            self._pinned_bytes -= resident.num_bytes

    def discard(self, adapter: str) -> None:
        """Forget an adapter that nobody uses (its load failed).

        Raises:
            ValueError: it is still in use.
        """
        if self._residents[adapter].num_users:
            raise ValueError(f"adapter '{adapter}' is in use")
        self._remove(adapter)

    def _make_room(self, num_bytes: int) -> tuple[int, ...]:
        evicted = []
        for adapter in [name for name, resident in self._residents.items() if resident.num_users == 0]:
            if self._used_bytes + num_bytes <= self.capacity_bytes:
                break
            evicted.append(self._remove(adapter))
        return tuple(evicted)

    def _remove(self, adapter: str) -> int:
        resident = self._residents.pop(adapter)
        self._used_bytes -= resident.num_bytes
        self._free_slots.append(resident.adapter_slot)
        return resident.adapter_slot

    def _take_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self._num_slots += 1
        return self._num_slots - 1

    def check_integrity(self) -> None:
        """For tests, after every step.

        Raises:
            AssertionError: bytes, pins or slots do not add up.
        """
        residents = self._residents.values()
        assert self._used_bytes == sum(r.num_bytes for r in residents) <= self.capacity_bytes
        assert self._pinned_bytes == sum(r.num_bytes for r in residents if r.num_users)
        assert all(r.num_users >= 0 for r in residents)
        slots = [r.adapter_slot for r in residents] + self._free_slots
        assert sorted(slots) == list(range(self._num_slots)), "a slot is lost or used twice"
