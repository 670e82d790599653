"""What the measuring of every operator needs: a shape, the device and its speeds, a timer, a check."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from caraserve_cli.bench.floor import DeviceSpeed
from caraserve_cli.bench.kernel_timer import KernelTimer
from caraserve_cli.core import BaseShape

# How far an operator may be from its float32 reference, of the largest value: enough for roundings on the
# way, not for a weight that was left out.
TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 1e-2, torch.float32: 1e-3}


@dataclass(frozen=True, slots=True)
class KernelBench:
    """Where and of what sizes operators are measured."""

    shape: BaseShape
    modules: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype
    speed: DeviceSpeed
    timer: KernelTimer

    @property
    def num_sms(self) -> int:
        """Multiprocessors of the GPU."""
        if self.device.type != "cuda":
            return 1
        return torch.cuda.get_device_properties(self.device).multi_processor_count

    def random(self, *size: int, std: float = 1.0) -> Tensor:
        """Random values of the run's dtype."""
        return torch.empty(size, dtype=self.dtype, device=self.device).normal_(std=std)

    def floor_us(self, num_bytes: float, flops: float = 0.0) -> float:
        """The least time for bytes of memory and operations, whichever takes longer."""
        return 1e6 * max(num_bytes / self.speed.bytes_per_s, flops / self.speed.flops_per_s)

    def wrong(self, error: float) -> str | None:
        """What to say of an operator with this `largest_error`; None if it is right."""
        tolerance = TOLERANCES[self.dtype]
        if error <= tolerance:
            return None
        return f"differs from its float32 reference by {error:.1e} of the largest value, not {tolerance:g}"


def largest_error(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """The largest difference, as a fraction of the largest value of `scale`, which is `expected` if left out;
    infinite where anything is not a number."""
    difference = (actual.float() - expected.float()).abs().max()
    error = float(difference / (expected if scale is None else scale).abs().max())
    return error if math.isfinite(error) else math.inf
