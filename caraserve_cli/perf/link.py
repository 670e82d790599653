"""How long bytes take over a link: from pinned host memory to the device, or there and back.

Knows no queue: what is under way before is the caller's to add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from caraserve_cli.perf.least_squares import FitQuality, fit_costs

BYTES_PER_MS_OF_GBPS = 1e6


@dataclass(frozen=True, slots=True)
class LinkModel:
    """ms = latency_ms + bytes / bytes_per_ms."""

    latency_ms: float
    bytes_per_ms: float
    quality: FitQuality

    @staticmethod
    def fit(what: str, sizes_bytes: Sequence[int], times_ms: Sequence[float]) -> LinkModel:
        """The model through copies of several sizes.

        Args:
            what: names the link where it is refused.
            sizes_bytes: of each copy.
            times_ms: of each copy, above 0.

        Raises:
            ProfileError: the points follow no such line, or larger copies take no longer.
        """
        latency_ms, ms_per_byte = fit_costs([(1.0, size) for size in sizes_bytes], times_ms)
        predicted = [latency_ms + size * ms_per_byte for size in sizes_bytes]
        quality = FitQuality.of(predicted, times_ms)
        quality.require(what)
        # A link whose time does not grow with the bytes is as fast as the largest copy shows at least.
        bytes_per_ms = 1 / ms_per_byte if ms_per_byte else max(sizes_bytes) / min(times_ms)
        return LinkModel(latency_ms, bytes_per_ms, quality)

    def copy_ms(self, num_bytes: float) -> float:
        """Milliseconds until all of `num_bytes` are there, on a link with nothing else to do."""
        return self.latency_ms + num_bytes / self.bytes_per_ms

    @property
    def gbps(self) -> float:
        """Bandwidth in GB/s."""
        return self.bytes_per_ms / BYTES_PER_MS_OF_GBPS

    def emulated(self, gbps: float) -> LinkModel:
        """The same link slowed down to `gbps` GB/s; a link that is slower by itself stays as it is."""
        return replace(self, bytes_per_ms=min(self.bytes_per_ms, gbps * BYTES_PER_MS_OF_GBPS))
