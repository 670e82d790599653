"""The adapters in host memory and the room that they take: who is pinned, and who leaves for whom.

Books only: reads nothing, and belongs under the host store's lock.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from caraserve_cli.adapters.host_arena import ArenaExtent, HostArena, arena_bytes
from caraserve_cli.adapters.weights import AdapterWeights


class Room(NamedTuple):
    """Bytes set aside for one adapter: an extent of the arena, or a share of memory that others allocate."""

    num_bytes: int
    extent: ArenaExtent | None


@dataclass(slots=True)
class _Kept:
    """`room` is None where the adapter takes memory beyond the store's, and leaves with its last pin."""

    weights: AdapterWeights
    room: Room | None
    num_pins: int = 0
    since_s: float = field(default_factory=time.perf_counter)


class KeptAdapters:
    """Adapters by name, the least recently used first.

    Args:
        capacity_bytes: of all rooms together, where there is no arena.
        arena: what rooms are extents of; its capacity counts.
    """

    def __init__(self, capacity_bytes: int, arena: HostArena | None) -> None:
        self._arena = arena
        self.capacity_bytes = capacity_bytes if arena is None else arena.capacity_bytes
        self._largest_bytes = capacity_bytes if arena is None else arena.largest_extent_bytes
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        # Of all rooms, those too that wait for their adapter.
        self._taken_bytes = 0

    def __contains__(self, name: str) -> bool:
        return name in self._kept

    @property
    def names(self) -> tuple[str, ...]:
        """Those that have a room, least recently used first."""
        return tuple(name for name, kept in self._kept.items() if kept.room is not None)

    @property
    def num_bytes(self) -> int:
        """Of their rooms."""
        return sum(kept.room.num_bytes for kept in self._kept.values() if kept.room is not None)

    def weights(self, name: str) -> AdapterWeights | None:
        """Weights of an adapter that is here; nothing else changes."""
        kept = self._kept.get(name)
        return None if kept is None else kept.weights

    def kept_ms(self, name: str) -> float:
        """For how long an adapter has been here; 0 where it is not."""
        kept = self._kept.get(name)
        return 0.0 if kept is None else 1000 * (time.perf_counter() - kept.since_s)

    def has_room_for(self, num_bytes: int) -> bool:
        """Whether an empty store would."""
        return self._bytes_of(num_bytes) <= self._largest_bytes

    def is_pinned(self, name: str) -> bool:
        """Whether the adapter is here and must stay."""
        return name in self._kept and self._kept[name].num_pins > 0

    def pin(self, name: str) -> AdapterWeights | None:
        """The weights, now the most recently used, which stay until `unpin`; None if they are not here."""
        kept = self._kept.get(name)
        if kept is None:
            return None
        kept.num_pins += 1
        self._kept.move_to_end(name)
        return kept.weights

    def unpin(self, name: str) -> None:
        """Take back one `pin`.

        Raises:
            KeyError: the adapter is not pinned.
        """
        kept = self._kept[name]
        if not kept.num_pins:
            raise KeyError(name)
        kept.num_pins -= 1
        if kept.room is None and not kept.num_pins:
            del self._kept[name]

    def take_room(self, num_bytes: int, wished: Sequence[str] = (), num_spared: int = 0) -> Room | None:
        """Room for an adapter, for which others leave: first what nobody wishes for, the least recently used
        first, then what is wished for, the last wish first. None, and where that can be told beforehand
        nobody leaves, if those that must stay leave no room.

        Args:
            num_bytes: of its weights.
            wished: adapters that will be needed, the soonest first.
            num_spared: how many of these, from the first on, must stay.
        """
        size = self._bytes_of(num_bytes)
        victims = list(self._victims(wished, num_spared))
        leaving_bytes = sum(room.num_bytes for name in victims if (room := self._kept[name].room))
        if size > self._largest_bytes or size > self.capacity_bytes - self._taken_bytes + leaving_bytes:
            return None
        room = self._fitting(num_bytes)
        for name in victims:
            if room is not None:
                break
            self._drop(name)
            room = self._fitting(num_bytes)
        return room

    def give_back(self, room: Room) -> None:
        """No adapter will come into this room."""
        self._taken_bytes -= room.num_bytes
        if room.extent is not None:
            assert self._arena is not None
            self._arena.free(room.extent)

    def add(self, weights: AdapterWeights, room: Room | None, *, pinned: bool) -> None:
        """Put an adapter where room was taken for it, as the most recently used one; without a room it
        must be pinned."""
        assert room is not None or pinned
        assert weights.name not in self._kept
        self._kept[weights.name] = _Kept(weights, room, int(pinned))

    def check_integrity(self) -> None:
        """For tests, while no room waits for its adapter.

        Raises:
            AssertionError: rooms overlap, or are not those of the adapters that are here.
        """
        assert self._taken_bytes == self.num_bytes <= self.capacity_bytes
        for name, kept in self._kept.items():
            assert kept.weights.name == name
            assert kept.num_pins > 0 or kept.room is not None
            assert kept.room is None or kept.room.num_bytes == kept.weights.host_bytes
        if self._arena is not None:
            self._arena.check_integrity()
            assert self._arena.used_bytes == self._taken_bytes

    def _bytes_of(self, num_bytes: int) -> int:
        return num_bytes if self._arena is None else arena_bytes(num_bytes)

    def _fitting(self, num_bytes: int) -> Room | None:
        size = self._bytes_of(num_bytes)
        extent = None
        if self._arena is not None:
            extent = self._arena.allocate(num_bytes)
            if extent is None:
                return None
        elif size > self.capacity_bytes - self._taken_bytes:
            return None
        self._taken_bytes += size
        return Room(size, extent)

    def _victims(self, wished: Sequence[str], num_spared: int) -> Iterator[str]:
        """Those that may leave, the first to go first."""
        wanted: Collection[str] = set(wished)
        for name, kept in self._kept.items():
            if not kept.num_pins and name not in wanted:
                yield name
        for name in reversed(wished[num_spared:]):
            if name in self._kept and not self._kept[name].num_pins:
                yield name

    def _drop(self, name: str) -> None:
        room = self._kept.pop(name).room
        assert room is not None
        self.give_back(room)
