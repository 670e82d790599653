"""The LoRA context of a step of which CPU workers compute a part: the first layers of cold adapters' prompts
(the paper's section 1).

In each projection of those layers the rows of the assisted tokens go to the workers before the base's product
is launched, and what they made of them is added after it. The launching thread runs ahead: nothing here waits
for the device or for a worker (on the CPU, where launching is computing, the caller does).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from caraserve_cli.model.contexts import LoraContext


class StepAssistance(Protocol):
    """The workers' side of one step."""

    @property
    def cpu_layers(self) -> int:
        """Leading layers that the workers compute."""
        ...

    def send(self, layer: int, modules: tuple[str, ...], x: Tensor) -> bool:
        """Have the rows [tokens, width] of `x` brought to the workers; False if none of the adapters changes
        these modules."""
        ...

    def receive(self, layer: int, modules: tuple[str, ...], y: Tensor) -> None:
        """Have what the workers made of what was sent last added to the rows of `y`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class AssistedLora:
    """`LoraContext` of a step whose first `num_tokens` tokens are assisted.

    Attributes:
        early: adds the adapters of all other tokens.
        late: adds those of all tokens, in layers that the workers do not compute.
        assistance: the workers.
        num_tokens: assisted.
    """

    early: LoraContext
    late: LoraContext
    assistance: StepAssistance
    num_tokens: int

    def begin(self, layer: int, modules: tuple[str, ...], x: Tensor) -> bool:
        """See `LoraContext`."""
        if layer >= self.assistance.cpu_layers:
            return self.late.begin(layer, modules, x)
        self.assistance.send(layer, modules, x[: self.num_tokens])
        return self.early.begin(layer, modules, x)

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """See `LoraContext`."""
        if layer >= self.assistance.cpu_layers:
            self.late.add(layer, modules, x, y)
            return
        self.early.add(layer, modules, x, y)
        self.assistance.receive(layer, modules, y[: self.num_tokens])
