"""The weights of the adapters that are on the device, by slot.

Moves weights where `engine.residency` planned them; decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.core import FUSED_MODULES, BaseShape
from caraserve_kernels.lora_linear import LoraPart


@dataclass(frozen=True, slots=True, eq=False)
class ResidentAdapter:
    """One adapter on the device.

    `parts` has, for each layer and fused projection that the adapter changes, one `LoraPart` a module.
    """

    parts: dict[tuple[int, tuple[str, ...]], tuple[LoraPart, ...]]
    lora_rank: int


class DevicePool:
    """Resident adapters of one device. On the CPU they share the host store's memory: nothing is copied."""

    def __init__(self, shape: BaseShape, device: torch.device) -> None:
        self._shape = shape
        self._device = device
        self._residents: dict[int, ResidentAdapter] = {}

    def __getitem__(self, adapter_slot: int) -> ResidentAdapter:
        return self._residents[adapter_slot]

    def load(self, adapter_slot: int, weights: AdapterWeights) -> None:
        """Copy an adapter in, in place of whatever the slot held."""
        parts: dict[tuple[int, tuple[str, ...]], tuple[LoraPart, ...]] = {}
        for layer in range(self._shape.num_layers):
            for modules in FUSED_MODULES:
                fused = self._fused_parts(weights, layer, modules)
                if fused:
                    parts[layer, modules] = fused
        self._residents[adapter_slot] = ResidentAdapter(parts, weights.lora_rank)

    def evict(self, adapter_slot: int) -> None:
        """Give a slot's memory back."""
        del self._residents[adapter_slot]

    def _fused_parts(
        self, weights: AdapterWeights, layer: int, modules: tuple[str, ...]
    ) -> tuple[LoraPart, ...]:
        parts: list[LoraPart] = []
        column = 0
        for module in modules:
            pair = weights.pairs.get((layer, module))
            if pair is not None:
                bias = None if pair.bias is None else pair.bias.to(self._device)
                parts.append(LoraPart(pair.a.to(self._device), pair.b_rows.to(self._device), bias, column))
            column += self._shape.module_shape(module)[1]
        return tuple(parts)
