"""A device's timer, with the spreads of what it measured."""

from __future__ import annotations

from collections.abc import Mapping

from caraserve_cli.bench.comparison import Spread
from caraserve_cli.fleet.device_timer import DeviceTimer, Work


class KernelTimer(DeviceTimer):
    """See `DeviceTimer`."""

    def time_us(self, works: Mapping[str, Work], most_repeats: int | None = None) -> dict[str, Spread]:
        """Microseconds of each operator by name; see `DeviceTimer.runs_us`."""
        return {name: Spread.of(runs) for name, runs in self.runs_us(works, most_repeats).items()}
