"""What a host store did, for the report. Data and nothing but data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class HostStoreCounters:
    """What a host store did since it was made. `loaded_bytes` counts canonical weights, not file sizes.

    `hits` found the adapter in memory, `misses` waited for its files; `prefetched` are those read before
    anyone asked for them.
    """

    hits: int = 0
    misses: int = 0
    prefetched: int = 0
    loaded_bytes: int = 0
    load_ms: float = 0.0
