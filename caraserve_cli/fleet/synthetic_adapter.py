"""Which adapters are to be made: their sizes. Imports no torch; `synthetic_adapters` makes them."""

from __future__ import annotations

from dataclasses import dataclass

from caraserve_cli.core import BaseShape


@dataclass(frozen=True, slots=True)
class SyntheticAdapter:
    """The sizes of one adapter: the same rank on the same modules of every layer.

    `copy` tells adapters of equal sizes apart, so that cases which need ten of a size share them.
    """

    lora_rank: int
    modules: tuple[str, ...]
    copy: int

    @property
    def name(self) -> str:
        return f"rank-{self.lora_rank}/{'+'.join(self.modules)}/{self.copy}"

    def num_weights(self, shape: BaseShape) -> int:
        """Elements of all its A and B."""
        widths = sum(sum(shape.module_shape(module)) for module in self.modules)
        return shape.num_layers * self.lora_rank * widths
