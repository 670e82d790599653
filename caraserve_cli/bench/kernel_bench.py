"""What the measuring of every operator needs: a shape, the device and its speeds, a timer, a check."""

from __future__ import annotations

from dataclasses import dataclass

from caraserve_cli.bench.floor import DeviceSpeed
from caraserve_cli.bench.kernel_timer import KernelTimer
from caraserve_cli.fleet.kernel_place import KernelPlace


@dataclass(frozen=True, slots=True)
class KernelBench(KernelPlace):
    """Where and of what sizes operators are measured."""

    speed: DeviceSpeed
    timer: KernelTimer

    def floor_us(self, num_bytes: float, flops: float = 0.0) -> float:
        """The least time for bytes of memory and operations, whichever takes longer."""
        return 1e6 * max(num_bytes / self.speed.bytes_per_s, flops / self.speed.flops_per_s)
