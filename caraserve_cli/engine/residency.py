"""Which adapters are on the device, and where: slots, extents of the pool, pins, and who leaves for whom.

Plans only; `adapters.device_pool` moves the weights. Knows sizes, not tensors: the simulator runs it too.

Each adapter is one contiguous extent, so that memory follows the sum of the adapters' sizes exactly, loading
one is one copy, and a kernel finds all of it from one base address. The price is fragmentation: where no
hole fits, extents are slid together. That reads and writes each byte once on the device, at 4.3 TB/s 0.5 ms
per GB moved; evicting more until a hole fits would cost reloads, at 55 GB/s 18 ms per GB. Moves come in
stream order with all that reads the adapters, so those in use move too, and whatever fits by its size can
be placed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from caraserve_cli.adapters.extents import ExtentMap, aligned_bytes
from caraserve_cli.core import AdapterInfo, ColdStart
from caraserve_cli.step_plan import AdapterEviction, AdapterLoad, AdapterMove, PoolOp

# One pinned copy from host to device, fitted to the table "Host ↔ device" of hardware.md (H200, PCIe 5.0
# x16): 22 µs for the smallest, 55 GB/s for the largest.
LOAD_LATENCY_MS = 0.022
LOAD_BYTES_PER_MS = 55e6

# When anyone must leave, so much of the pool is emptied beyond what is needed, of adapters that nobody waits
# for: the next loads then find a hole, and fewer of them move the whole pool. Simulated
# with 2000 adapters of ranks 8 to 64, Zipf 0.9, 14 GiB: moves take 0.34 of the time of all loads without it,
# 0.07 with it, for 1.4% more loads.
EVICTION_SLACK = 0.05


@dataclass(slots=True)
class _Resident:
    adapter_slot: int
    offset_bytes: int
    num_bytes: int  # as aligned in the pool
    num_users: int = 0
    num_acquires: int = 0
    clock: float = 0.0  # the residency's clock when it was last in use

    @property
    def worth(self) -> float:
        """GreedyDual-Size-Frequency: milliseconds of reloading saved per byte kept, from `clock` on."""
        reload_ms = LOAD_LATENCY_MS + self.num_bytes / LOAD_BYTES_PER_MS
        return self.clock + self.num_acquires * reload_ms / self.num_bytes


@dataclass(frozen=True, slots=True)
class Acquired:
    """What it takes to use an adapter: its slot, and what must be done to the pool first, in this order:
    evictions, moves, the load. Nothing if it is resident."""

    adapter_slot: int
    pool_ops: tuple[PoolOp, ...] = ()

    @property
    def needs_load(self) -> bool:
        return bool(self.pool_ops)


class AdapterResidency:
    """Adapters within `capacity_bytes`; those in use are pinned, the others leave when room is needed.

    Who leaves first: adapters that no waiting request wants before those that one does; among these the
    least worth by GreedyDual-Size-Frequency (Cherkasova 1998), `clock + frequency · reload time / size`,
    where the clock rises to the worth of each adapter that leaves, so that old fame fades; among equals the
    least recently used.

    At most `max_adapters` are resident. `capacity_bytes` and all sizes are rounded up to
    `extents.ALIGNMENT_BYTES`: an adapter not larger than the pool always fits it alone, and the pool's buffer
    must have the rounded `capacity_bytes`.
    """

    def __init__(self, capacity_bytes: int, max_adapters: int) -> None:
        self._max_adapters = max_adapters
        self._extents = ExtentMap(capacity_bytes)
        self._residents: OrderedDict[str, _Resident] = OrderedDict()  # least recently used first
        self._name_at: dict[int, str] = {}  # offset of each extent → its adapter
        self._num_waiting: Counter[str] = Counter()  # waiting requests of each adapter, none at zero
        self._num_wanted = 0  # of these adapters, those that are not resident
        self._free_slots: list[int] = []
        self._num_slots = 0
        self._pinned_bytes = 0
        self._num_pinned = 0
        self._clock = 0.0

    @property
    def capacity_bytes(self) -> int:
        return self._extents.capacity_bytes

    @property
    def used_bytes(self) -> int:
        return self._extents.used_bytes

    @property
    def free_bytes(self) -> int:
        return self._extents.free_bytes

    @property
    def max_adapters(self) -> int:
        return self._max_adapters

    @property
    def num_free_slots(self) -> int:
        return self._max_adapters - len(self._residents)

    def __iter__(self) -> Iterator[str]:
        """Names of the resident adapters, the least recently used first."""
        return iter(self._residents)

    def is_resident(self, adapter: str) -> bool:
        return adapter in self._residents

    def size_bytes(self, adapter: str) -> int:
        """What a resident adapter takes of the pool."""
        return self._residents[adapter].num_bytes

    def note_waiting(self, adapter: str | None, change: int) -> None:
        """`change` more requests wait for `adapter` (None, the base alone, is always there)."""
        if adapter is None:
            return
        was_waited_for = adapter in self._num_waiting
        self._num_waiting[adapter] += change
        if not self._num_waiting[adapter]:
            del self._num_waiting[adapter]
        if not self.is_resident(adapter):
            self._num_wanted += (adapter in self._num_waiting) - was_waited_for

    def num_waiting(self, adapter: str) -> int:
        """Requests that wait for `adapter`."""
        return self._num_waiting.get(adapter, 0)

    @property
    def num_wanted(self) -> int:
        """Adapters that are not resident, of those that requests wait for."""
        return self._num_wanted

    def can_acquire(self, info: AdapterInfo) -> bool:
        """Whether `acquire` would find room now."""
        if self.is_resident(info.name):
            return True
        room_bytes = self.capacity_bytes - self._pinned_bytes
        return aligned_bytes(info.num_bytes) <= room_bytes and self._num_pinned < self._max_adapters

    def acquire(
        self,
        info: AdapterInfo,
        how: ColdStart = ColdStart.STREAM,
        cpu_layers: int = 0,
        *,
        is_held: bool = False,
        is_beside: bool = False,
    ) -> Acquired:
        """Pin an adapter for one more user, making room if need be; `how` it is loaded then, and what else
        an `AdapterLoad` says, is told to whoever loads it.

        Raises:
            ValueError: there is no room (callers ask `can_acquire` first).
        """
        if not self.can_acquire(info):
            raise ValueError(f"no room for adapter '{info.name}'")
        pool_ops: tuple[PoolOp, ...] = ()
        if not self.is_resident(info.name):
            pool_ops = self._place(info)
            slot, offset = self._residents[info.name].adapter_slot, self._residents[info.name].offset_bytes
            pool_ops += (AdapterLoad(info.name, slot, offset, how, cpu_layers, is_held, is_beside),)
        resident = self._residents[info.name]
        if resident.num_users == 0:
            self._pinned_bytes += resident.num_bytes
            self._num_pinned += 1
        resident.num_users += 1
        resident.num_acquires += 1
        self._touch(info.name)
        return Acquired(resident.adapter_slot, pool_ops)

    def release(self, adapter: str) -> None:
        """One user less; the adapter stays until its room is needed."""
        resident = self._residents[adapter]
        resident.num_users -= 1
        if resident.num_users == 0:
            self._pinned_bytes -= resident.num_bytes
            self._num_pinned -= 1
        self._touch(adapter)

    def discard(self, adapter: str) -> None:
        """Forget an adapter that nobody uses (its load failed).

        Raises:
            ValueError: it is still in use.
        """
        if self._residents[adapter].num_users:
            raise ValueError(f"adapter '{adapter}' is in use")
        self._remove(adapter)

    def _touch(self, adapter: str) -> None:
        self._residents[adapter].clock = self._clock
        self._residents.move_to_end(adapter)

    def _place(self, info: AdapterInfo) -> tuple[PoolOp, ...]:
        """Make an adapter resident, unpinned; what that does to the others in the pool."""
        size = aligned_bytes(info.num_bytes)
        evictions = [AdapterEviction(self._evict(name)) for name in self._choose_victims(size)]
        moves: list[AdapterMove] = []
        offset = self._extents.allocate(size)
        if offset is None:
            moves = self._compact(size)
            offset = self._extents.allocate(size)
        assert offset is not None, "bytes that are free in total are not free in one piece"
        resident = _Resident(self._take_slot(), offset, size)
        self._residents[info.name] = resident
        self._num_wanted -= info.name in self._num_waiting
        self._name_at[offset] = info.name
        return (*evictions, *moves)

    def _choose_victims(self, num_bytes: int) -> list[str]:
        """Whom to evict so that `num_bytes` are free in total, and a slot: the least worth first, no more
        than it takes."""
        missing_bytes = num_bytes - self.free_bytes
        if missing_bytes <= 0 and self.num_free_slots:
            return []
        unpinned = [name for name, resident in self._residents.items() if resident.num_users == 0]
        unpinned.sort(key=lambda name: (name in self._num_waiting, self._residents[name].worth))  # stable
        victims = self.choose_enough(unpinned, missing_bytes, 1 - self.num_free_slots)
        missing_bytes -= sum(map(self.size_bytes, victims))
        return victims + self._choose_slack(unpinned, victims, missing_bytes)

    def choose_enough(self, adapters: Iterable[str], num_bytes: int, num_slots: int) -> list[str]:
        """The first of these residents that free `num_bytes` and `num_slots` together, but no more than it
        takes."""
        chosen: list[str] = []
        for name in adapters:
            if num_bytes <= 0 and len(chosen) >= num_slots:
                break
            chosen.append(name)
            num_bytes -= self.size_bytes(name)
        for name in chosen[-2::-1]:  # a large last one may have made some of the others needless
            if num_bytes + self.size_bytes(name) <= 0 and len(chosen) > num_slots:
                chosen.remove(name)
                num_bytes += self.size_bytes(name)
        return chosen

    def _choose_slack(self, unpinned: list[str], victims: list[str], missing_bytes: int) -> list[str]:
        """Who leaves besides the victims; `missing_bytes` is what they leave free beyond need, below zero."""
        slack_bytes = int(EVICTION_SLACK * self.capacity_bytes) + missing_bytes
        chosen: list[str] = []
        for name in unpinned:
            if name in victims:
                continue
            slack_bytes -= self._residents[name].num_bytes
            if slack_bytes < 0 or name in self._num_waiting:
                break
            chosen.append(name)
        return chosen

    def _evict(self, adapter: str) -> int:
        self._clock = max(self._clock, self._residents[adapter].worth)
        return self._remove(adapter)

    def _compact(self, num_bytes: int) -> list[AdapterMove]:
        moves: list[AdapterMove] = []
        for move in self._extents.compact(num_bytes):
            name = self._name_at.pop(move.from_offset_bytes)
            self._name_at[move.to_offset_bytes] = name
            self._residents[name].offset_bytes = move.to_offset_bytes
            moves.append(AdapterMove(self._residents[name].adapter_slot, *move))
        return moves

    def _remove(self, adapter: str) -> int:
        resident = self._residents.pop(adapter)
        self._num_wanted += adapter in self._num_waiting
        self._extents.free(resident.offset_bytes)
        del self._name_at[resident.offset_bytes]
        self._free_slots.append(resident.adapter_slot)
        return resident.adapter_slot

    def _take_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self._num_slots += 1
        return self._num_slots - 1

    def check_integrity(self, waiting: Iterable[str | None] = ()) -> None:
        """For tests, after every step; `waiting` has the adapter of each waiting request.

        Raises:
            AssertionError: extents, pins, slots or waiting requests do not add up.
        """
        residents = self._residents
        self._extents.check_integrity()
        assert self._name_at == {r.offset_bytes: name for name, r in residents.items()}
        assert self.used_bytes == sum(r.num_bytes for r in residents.values()) <= self.capacity_bytes
        assert self._num_pinned == sum(r.num_users > 0 for r in self._residents.values())
        assert len(self._residents) <= self._max_adapters
        assert self._pinned_bytes == sum(r.num_bytes for r in residents.values() if r.num_users)
        assert all(r.num_users >= 0 for r in residents.values())
        slots = [r.adapter_slot for r in residents.values()] + self._free_slots
        assert sorted(slots) == list(range(self._num_slots)), "a slot is lost or used twice"
        assert self._num_waiting == Counter(name for name in waiting if name is not None)
        assert self._num_wanted == sum(name not in residents for name in self._num_waiting)
