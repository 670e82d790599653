"""Where, of what sizes and on what data operators of adapters are measured, and whether they are right."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from caraserve_cli.core import FUSED_MODULES, BaseShape

# How far an operator may be from its float32 reference, of the largest value: enough for roundings on the
# way, not for a weight that was left out.
TOLERANCES = {torch.bfloat16: 3e-2, torch.float16: 1e-2, torch.float32: 1e-3}

_Y_STD = 0.1


@dataclass(frozen=True, slots=True)
class KernelPlace:
    """A device, a base's shape, and the modules that every adapter changes."""

    shape: BaseShape
    modules: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype

    @property
    def num_sms(self) -> int:
        """Multiprocessors of the GPU."""
        if self.device.type != "cuda":
            return 1
        return torch.cuda.get_device_properties(self.device).multi_processor_count

    def random(self, *size: int, std: float = 1.0) -> Tensor:
        """Random values of the run's dtype."""
        return torch.empty(size, dtype=self.dtype, device=self.device).normal_(std=std)

    def wrong(self, error: float) -> str | None:
        """What to say of an operator with this `largest_error`; None if it is right."""
        tolerance = TOLERANCES[self.dtype]
        if error <= tolerance:
            return None
        return f"differs from its float32 reference by {error:.1e} of the largest value, not {tolerance:g}"


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A fused projection that adapters change: what goes in, and what they add to."""

    modules: tuple[str, ...]
    x: Tensor
    y: Tensor


def make_projections(place: KernelPlace, shape: BaseShape, num_tokens: int) -> Iterator[Projection]:
    """Those of a layer that the place's adapters change, with random content for so many tokens."""
    for modules in FUSED_MODULES:
        if not set(modules).isdisjoint(place.modules):
            in_width = shape.module_shape(modules[0])[0]
            out_width = sum(shape.module_shape(module)[1] for module in modules)
            x = place.random(num_tokens, in_width)
            yield Projection(modules, x, place.random(num_tokens, out_width, std=_Y_STD))


def largest_error(actual: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """The largest difference, as a fraction of the largest value of `scale`, which is `expected` if left out;
    infinite where anything is not a number."""
    difference = (actual.float() - expected.float()).abs().max()
    error = float(difference / (expected if scale is None else scale).abs().max())
    return error if math.isfinite(error) else math.inf
