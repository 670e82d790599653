"""Which of the base's fused projections any adapter of a library changes, told from the configs alone.

A config is looked at once for all adapters that select the same modules, so that thousands cost what reading
their configs does. An adapter that is refused later counts too: more is launched than need be, nothing less.
"""

from __future__ import annotations

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.peft_config import PeftConfig
from caraserve_cli.adapters.peft_weights import module_path
from caraserve_cli.core import FUSED_MODULES, BaseShape
from caraserve_cli.errors import AdapterError


def find_used_groups(library: AdapterLibrary, shape: BaseShape) -> frozenset[int]:
    """Indices into FUSED_MODULES."""
    used: set[int] = set()
    seen: set[object] = set()
    for name in library.names:
        if len(used) == len(FUSED_MODULES):
            break
        try:
            config = PeftConfig.read(name, library.path(name))
        except AdapterError:
            continue  # its requests will say why
        selection = (
            config.target_modules,
            config.exclude_modules,
            config.layers_to_transform,
            config.layers_pattern,
        )
        if selection not in seen:
            seen.add(selection)
            used |= _groups_of(config, shape)
    return frozenset(used)


def _groups_of(config: PeftConfig, shape: BaseShape) -> set[int]:
    return {
        group
        for group, modules in enumerate(FUSED_MODULES)
        if any(
            config.selects(module_path((layer, module)))
            for layer in range(shape.num_layers)
            for module in modules
        )
    }
