"""The adapters in the host memory of a simulated replica, and the disk that they are read from: one after
the other, in the order in which they are asked for. Where there is no room, those go that were needed longest
ago.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from caraserve_cli.core import AdapterInfo
from caraserve_cli.perf.link import LinkModel


class HostShelf:
    """The adapters of one replica.

    Args:
        disk: how long it takes to read one.
        room_bytes: for all that are here; one that is larger is read anew whenever it is needed.
        adapters: by name, of all that may be asked for.
        clock_ms: the time now.
    """

    def __init__(
        self,
        disk: LinkModel,
        room_bytes: int,
        adapters: Mapping[str, AdapterInfo],
        clock_ms: Callable[[], float],
    ) -> None:
        self._disk, self._room_bytes = disk, room_bytes
        self._adapters, self._clock_ms = adapters, clock_ms
        self._came_ms: dict[str, float] = {}  # of those that are here or being read; needed longest ago first
        self._used_bytes = 0
        self._disk_free_ms = 0.0
        self.num_reads = 0

    def prefetch(self, names: Iterable[str]) -> None:
        """These will be needed, in this order: those that are not here are read."""
        wanted = list(names)
        for name in reversed(wanted):
            self._note_use(name)
        for place, name in enumerate(wanted):
            if name not in self._came_ms and not self._read(name, keep=wanted[:place]):
                return

    def is_ready(self, name: str) -> bool:
        """Whether it is here."""
        return self._came_ms.get(name, math.inf) <= self._clock_ms()

    def ready_ms(self, name: str) -> float:
        """For how long it has been here; 0 where it is not."""
        return max(0.0, self._clock_ms() - self._came_ms.get(name, math.inf))

    def next_ready_ms(self) -> float:
        """When the next of those has been read that are being read; infinite without any."""
        now_ms = self._clock_ms()
        return min((each for each in self._came_ms.values() if each > now_ms), default=math.inf)

    def _note_use(self, name: str) -> None:
        if name in self._came_ms:
            self._came_ms[name] = self._came_ms.pop(name)

    def _read(self, name: str, keep: Iterable[str]) -> bool:
        """False if there is no room beside `keep` and what is being read."""
        num_bytes, now_ms = self._adapters[name].num_bytes, self._clock_ms()
        kept = set(keep)
        for other, came_ms in tuple(self._came_ms.items()):
            if self._used_bytes + num_bytes <= self._room_bytes:
                break
            if other not in kept and came_ms <= now_ms:
                del self._came_ms[other]
                self._used_bytes -= self._adapters[other].num_bytes
        if self._came_ms and self._used_bytes + num_bytes > self._room_bytes:
            return False
        begin_ms = max(now_ms, self._disk_free_ms) + self._disk.latency_ms
        self._disk_free_ms = begin_ms + num_bytes / self._disk.bytes_per_ms
        self._came_ms[name] = self._disk_free_ms
        self._used_bytes += num_bytes
        self.num_reads += 1
        return True
