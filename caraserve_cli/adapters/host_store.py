"""Adapters in host memory, bounded in bytes, the least recently used dropped first.

Knows the library and how to load, not the device: what is fetched is used, or copied on, by the caller.
"""

from __future__ import annotations

import dataclasses
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter
from caraserve_cli.adapters.packing import Packer
from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.core import AdapterInfo, BaseShape
from caraserve_cli.errors import AdapterError

# Name, folder, the base's shape, the run's dtype -> the weights; raises AdapterError.
LoadAdapter: TypeAlias = Callable[[str, Path, BaseShape, torch.dtype], AdapterWeights]


@dataclass(slots=True)
class HostStoreCounters:
    """What a host store did since it was made. `loaded_bytes` counts canonical weights, not file sizes."""

    hits: int = 0
    misses: int = 0
    loaded_bytes: int = 0
    load_ms: float = 0.0


class HostStore:
    """Loads adapters on demand and keeps those used last.

    Args:
        library: which adapters exist.
        shape: the base that they must fit.
        dtype: of the weights in memory.
        capacity_bytes: of the weights kept. A larger adapter is served all the same, but not kept.
        packer: packs what is loaded for a device pool; None where the weights are used from host memory.
        load: makes the weights of what is not in memory.
    """

    def __init__(
        self,
        library: AdapterLibrary,
        shape: BaseShape,
        dtype: torch.dtype,
        capacity_bytes: int,
        packer: Packer | None = None,
        load: LoadAdapter = load_adapter,
    ) -> None:
        self._library = library
        self._shape = shape
        self._dtype = dtype
        self._capacity_bytes = capacity_bytes
        self.packer = packer
        self._load_adapter = load
        self._kept: OrderedDict[str, AdapterWeights] = OrderedDict()
        self._kept_bytes = 0
        # Small, and kept for good: planning asks for them long after the weights are dropped.
        self._infos: dict[str, AdapterInfo] = {}
        self._refused: dict[str, AdapterError] = {}
        self.counters = HostStoreCounters()

    @property
    def kept_bytes(self) -> int:
        """Size of all weights in the store, at most its capacity."""
        return self._kept_bytes

    @property
    def kept_names(self) -> tuple[str, ...]:
        """The adapters in the store, least recently used first."""
        return tuple(self._kept)

    def fetch(self, name: str) -> AdapterWeights:
        """The weights of the adapter called `name`, from memory or from its folder.

        Raises:
            AdapterError: it does not exist or is refused. Its files are then never read again.
        """
        weights = self._kept.get(name)
        if weights is not None:
            self.counters.hits += 1
            self._kept.move_to_end(name)
            return weights
        if name in self._refused:
            refused = self._refused[name]
            raise AdapterError(refused.adapter, refused.reason)
        folder = self._library.path(name)
        self.counters.misses += 1
        weights = self._load(name, folder)
        self._keep(weights)
        return weights

    def info(self, name: str) -> AdapterInfo:
        """What planning needs to know of an adapter; loads it if it was never loaded.

        Raises:
            AdapterError: as `fetch`.
        """
        if name not in self._infos:
            self.fetch(name)
        return self._infos[name]

    def check_integrity(self) -> None:
        """Raises AssertionError where the books do not add up; for tests."""
        assert self._kept_bytes == sum(weights.host_bytes for weights in self._kept.values())
        assert self._kept_bytes <= self._capacity_bytes
        assert self._kept.keys() <= self._infos.keys()
        assert not self._refused.keys() & self._infos.keys()

    def _load(self, name: str, folder: Path) -> AdapterWeights:
        start = time.perf_counter()
        try:
            loaded = self._load_adapter(name, folder, self._shape, self._dtype)
            weights = loaded if self.packer is None else self.packer.pack(loaded)
            self._remember(dataclasses.replace(loaded.info(), num_bytes=weights.num_bytes))
        except AdapterError as error:
            # Remembered without its traceback, which would keep half-read tensors alive.
            self._refused[name] = AdapterError(error.adapter, error.reason)
            self._infos.pop(name, None)
            raise
        self.counters.loaded_bytes += weights.num_bytes
        self.counters.load_ms += (time.perf_counter() - start) * 1000
        return weights

    def _remember(self, info: AdapterInfo) -> None:
        """Notes an adapter's info: what was planned and cached with it must hold when it is read again."""
        if self._infos.setdefault(info.name, info).content_hash != info.content_hash:
            raise AdapterError(info.name, "its files changed during the run; run again with the new ones")

    def _keep(self, weights: AdapterWeights) -> None:
        if weights.host_bytes > self._capacity_bytes:
            return
        while self._kept_bytes + weights.host_bytes > self._capacity_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._kept_bytes -= dropped.host_bytes
        self._kept[weights.name] = weights
        self._kept_bytes += weights.host_bytes
