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

from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.model.contexts import LoraContext


class StepAssistance(Protocol):
    """The workers' side of a step."""

    def send(self, layer: int, group: int, x: Tensor) -> None:
        """Have the assisted rows of `x` [tokens, width] brought to the workers, if they compute this op."""
        ...

    def receive(self, layer: int, group: int, y: Tensor) -> None:
        """Have what the workers made of what was sent last added to the assisted rows of `y`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class AssistedLora:
    """`LoraContext` of a step whose first tokens are assisted.

    Attributes:
        early: adds the adapters of all other tokens.
        late: adds those of all tokens, in layers that the workers do not compute.
        assistance: the workers.
        cpu_layers: leading layers that they compute.
        groups: fused groups that any adapter changes, indices of FUSED_MODULES.
    """

    early: LoraContext
    late: LoraContext
    assistance: StepAssistance
    cpu_layers: int
    groups: frozenset[int]

    def begin(self, layer: int, modules: tuple[str, ...], x: Tensor) -> bool:
        """See `LoraContext`."""
        if layer >= self.cpu_layers:
            return self.late.begin(layer, modules, x)
        group = FUSED_MODULES.index(modules)
        if group in self.groups:
            self.assistance.send(layer, group, x)
        return self.early.begin(layer, modules, x)

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        """See `LoraContext`."""
        if layer >= self.cpu_layers:
            self.late.add(layer, modules, x, y)
            return
        self.early.add(layer, modules, x, y)
        group = FUSED_MODULES.index(modules)
        if group in self.groups:
            self.assistance.receive(layer, group, y)
