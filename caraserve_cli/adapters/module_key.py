"""Which linear module of the base is meant: its layer and its name. Imports no torch."""

from __future__ import annotations

from caraserve_cli.core import LORA_MODULES

# (layer index, one of LORA_MODULES)
ModuleKey = tuple[int, str]


def module_order(key: ModuleKey) -> tuple[int, int]:
    """Sort key that puts modules in the order of the forward pass."""
    layer, module = key
    return layer, LORA_MODULES.index(module)
