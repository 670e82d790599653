"""Adapters in host memory, bounded in bytes: read ahead of need, the least recently used dropped first.

Packed adapters lie in one arena (`host_arena`) that CPU workers map too; others in memory of their own.
What is known without weights is `description`'s, the books are `kept_adapters`'s, the thread
`adapter_reader`'s. Knows the library and how to load, not the device: what is acquired is used, or copied
on, by the caller.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import torch

from caraserve_cli.adapters.adapter_reader import AdapterReader
from caraserve_cli.adapters.description import Description, Descriptions, OutlineAdapter
from caraserve_cli.adapters.host_arena import HostArena
from caraserve_cli.adapters.host_store_counters import HostStoreCounters
from caraserve_cli.adapters.kept_adapters import KeptAdapters, Room
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter, outline_adapter
from caraserve_cli.adapters.module_key import ModuleKey
from caraserve_cli.adapters.packing import BlobRoom, Packer
from caraserve_cli.adapters.weights import AdapterWeights, LoraPair
from caraserve_cli.adapters.wishes import Wishes
from caraserve_cli.core import AdapterInfo, BaseShape
from caraserve_cli.errors import AdapterError

# Name, folder, the base's shape, the run's dtype, the memory to put them in or None for new memory -> the
# weights; raises AdapterError.
LoadAdapter: TypeAlias = Callable[
    [str, Path, BaseShape, torch.dtype, Mapping[ModuleKey, LoraPair] | None], AdapterWeights
]


class HostStore:
    """Adapters of a library in host memory. Any thread may call it; files are read without its lock.

    Args:
        library: which adapters exist.
        shape: the base that they must fit.
        dtype: of the weights in memory.
        capacity_bytes: of the weights kept. What has no room is served all the same, but not kept.
        packer: packs what is loaded for a device pool; None where the weights are used from host memory.
        load: makes the weights of what is not in memory.
        outline: tells what `load` will make, without making it.

    Attributes:
        packer: as given.
        arena: where packed adapters lie; None without a packer.
        counters: only ever grow.
    """

    def __init__(
        self,
        library: AdapterLibrary,
        shape: BaseShape,
        dtype: torch.dtype,
        capacity_bytes: int,
        packer: Packer | None = None,
        load: LoadAdapter = load_adapter,
        outline: OutlineAdapter = outline_adapter,
    ) -> None:
        self._shape, self._dtype = shape, dtype
        self.packer = packer
        self.arena = None if packer is None else HostArena(capacity_bytes, pinned=packer.pinned)
        self._load_adapter = load
        self.counters = HostStoreCounters()
        self._descriptions = Descriptions(library, shape, dtype, packer, outline)
        # Guards all that follows, and is notified of every change to it.
        self._changed = threading.Condition()
        self._kept = KeptAdapters(capacity_bytes, self.arena)
        self._wishes = Wishes()
        self._being_read: set[str] = set()
        # How many wishes were met or given up, and how many of these a waiting caller has been told of.
        self._num_ready = self._num_told = 0
        self._reader = AdapterReader(self._changed, self._choose, self._prefetch)
        self._is_closed = False

    @property
    def kept_bytes(self) -> int:
        """Size of all weights in the store, at most its capacity."""
        with self._changed:
            return self._kept.num_bytes

    @property
    def kept_names(self) -> tuple[str, ...]:
        """The adapters in the store, least recently used first."""
        with self._changed:
            return self._kept.names

    def describe(self, name: str) -> AdapterInfo:
        """What planning needs to know of an adapter, from its config and header; remembered for good.

        Raises:
            AdapterError: it does not exist or is refused, now or when it was first read.
        """
        return self._descriptions.of(name).info

    def prefetch(self, names: Iterable[str]) -> None:
        """Have the adapters that will be needed next, in this order, read by a thread of the store's own. The
        list replaces the last one; a read that has begun goes on.

        Adapters that are neither in this list nor pinned leave for them, and later ones for earlier ones.
        Whatever goes wrong comes out of `acquire`.
        """
        with self._changed:
            if not self._is_closed and self._wishes.replace(names):
                self._reader.wake()

    def is_ready(self, name: str) -> bool:
        """Whether waiting for a prefetch makes no sense: the adapter is in memory, cannot be read at all,
        or there is no room to prefetch it to."""
        with self._changed:
            return self._is_settled(name)

    def kept_ms(self, name: str) -> float:
        """For how long the adapter has been in memory; 0 where it is not."""
        with self._changed:
            return self._kept.kept_ms(name)

    def is_shared(self, name: str) -> bool:
        """Whether the adapter is in the arena, where other processes can read it."""
        with self._changed:
            weights = self._kept.weights(name)
        return (
            weights is not None
            and weights.packed is not None
            and weights.packed.arena_offset_bytes is not None
        )

    def wait_until_ready(self, timeout_s: float) -> None:
        """Wait until another adapter of `prefetch`'s list has become ready since the last call returned,
        or until the time is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_ready != self._num_told, timeout_s)
            self._num_told = self._num_ready

    def acquire(self, name: str) -> AdapterWeights:
        """The weights of the adapter called `name`, which stay where they are until `release`. What is not in
        memory is read now; what is being read is waited for.

        Raises:
            AdapterError: it does not exist or is refused. Its files are then never read again.
            OptionError: memory for it cannot be pinned.
        """
        with self._changed:
            assert not self._is_closed, "the host store is closed"
            is_hit = name not in self._being_read
            self._changed.wait_for(lambda: name not in self._being_read)
            self._descriptions.check(name)
            weights = self._kept.pin(name)
            if weights is not None:
                self.counters.hits += is_hit
                self.counters.misses += not is_hit
                self._note_change()
                return weights
            self.counters.misses += 1
            self._being_read.add(name)
        weights = self._read(name, is_wish=False)
        assert weights is not None
        return weights

    def release(self, name: str) -> None:
        """Take back one `acquire`: once all are, the weights may go.

        Raises:
            KeyError: the adapter is not acquired.
        """
        with self._changed:
            self._kept.unpin(name)
            self._wishes.try_again()
            self._note_change()

    def close(self) -> None:
        """Finish the read under way, end the thread, and give the arena back: nothing may use its weights any
        more. A second call does nothing."""
        with self._changed:
            self._is_closed = True
        self._reader.close()
        if self.arena is not None:
            self.arena.close()

    def check_integrity(self) -> None:
        """For tests. Raises AssertionError where the books do not add up."""
        with self._changed:
            self._changed.wait_for(lambda: not self._being_read)
            self._kept.check_integrity()
            self._wishes.check_integrity()

    def _note_change(self) -> None:
        """Something was used, given back or read: the reader may have room now."""
        self._wishes.wait_for_room = False
        self._changed.notify_all()

    def _choose(self) -> str | None:
        """The first wish that the reader can do something about, as begun."""
        if self._wishes.wait_for_room:
            return None
        for name in self._wishes.names:
            if not self._is_settled(name) and name not in self._being_read:
                self._being_read.add(name)
                return name
        return None

    def _is_settled(self, name: str) -> bool:
        return name in self._kept or self._wishes.is_given_up(name) or self._descriptions.is_hopeless(name)

    def _prefetch(self, name: str) -> None:
        """What the reader does. An AdapterError is remembered as a refusal; what else goes wrong goes
        wrong again where the adapter is needed, and is told there."""
        try:
            self._read(name, is_wish=True)
        except AdapterError:
            pass
        except Exception:
            with self._changed:
                self._wishes.give_up(name)
        with self._changed:
            if not self._wishes.wait_for_room:
                self._num_ready += 1
                self._changed.notify_all()

    def _read(self, name: str, *, is_wish: bool) -> AdapterWeights | None:
        """Bring an adapter that is marked as being read into the store, pinned unless it is a wish; None
        if there is no room for a wish."""
        room = None
        try:
            description = self._descriptions.of(name)
            with self._changed:
                room = self._take_room(description, is_wish=is_wish)
                if room is None and is_wish:
                    self._being_read.discard(name)
                    self._changed.notify_all()  # whoever waits for this read; the reader finds nothing new
                    return None
            start = time.perf_counter()
            weights = self._load(description, room)
            load_ms = (time.perf_counter() - start) * 1000
        except BaseException as error:
            with self._changed:
                if isinstance(error, AdapterError):
                    self._descriptions.refuse(error)
                if room is not None:
                    self._kept.give_back(room)
                self._being_read.discard(name)
                self._note_change()
            raise
        with self._changed:
            self._kept.add(weights, room, pinned=not is_wish)
            self._being_read.discard(name)
            self.counters.prefetched += is_wish
            self.counters.loaded_bytes += weights.num_bytes
            self.counters.load_ms += load_ms
            self._note_change()
        return weights

    def _take_room(self, description: Description, *, is_wish: bool) -> Room | None:
        num_bytes, name = description.info.num_bytes, description.info.name
        wished = self._wishes.names
        if not is_wish:
            return self._kept.take_room(num_bytes, wished)
        num_ahead = self._wishes.num_ahead(name)
        room = self._kept.take_room(num_bytes, wished, num_ahead)
        if room is None:
            in_the_way = (other for other in wished[:num_ahead] if other in self._kept)
            self._wishes.wait_for_room = self._kept.has_room_for(num_bytes) and any(
                not self._kept.is_pinned(other) for other in in_the_way
            )
            if not self._wishes.wait_for_room:
                self._wishes.give_up(name)
        return room

    def _load(self, description: Description, room: Room | None) -> AdapterWeights:
        """Read an adapter, packed into its place, without the lock."""
        packed = None if self.packer is None else self._place(self.packer, description, room)
        pairs = None if packed is None else packed.pairs
        loaded = self._load_adapter(
            description.info.name, description.folder, self._shape, self._dtype, pairs
        )
        description.check(loaded.outline)
        return loaded if packed is None else packed

    def _place(self, packer: Packer, description: Description, room: Room | None) -> AdapterWeights:
        blob_room = None
        if room is not None:
            assert self.arena is not None
            assert room.extent is not None
            memory = self.arena.tensor(room.extent, self._dtype)
            blob_room = BlobRoom(memory, room.extent.offset_bytes)
        return packer.place(description.outline, self._dtype, blob_room)
