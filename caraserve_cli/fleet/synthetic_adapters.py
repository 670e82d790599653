"""Adapters of given sizes and random content: work of real shapes without a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.module_key import ModuleKey
from caraserve_cli.adapters.weights import AdapterOutline, AdapterWeights, LoraPair
from caraserve_cli.core import FUSED_MODULES, BaseShape
from caraserve_cli.fleet.surroundings import AdapterSource
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter

_WEIGHT_STD = 0.02


class SyntheticAdapters:
    """Makes adapters when they are asked for. Those of equal sizes have equal content.

    Args:
        adapters: those that can be asked for.
        packed: whether what is made in no given memory is packed later, which copies it. If not, each
            adapter is made in memory of its own: reading one must not find it in a cache because another was
            read.
    """

    def __init__(self, adapters: Iterable[SyntheticAdapter], *, packed: bool) -> None:
        self._adapters = {adapter.name: adapter for adapter in adapters}
        self._packed = packed
        self._pairs: dict[tuple[int, tuple[str, ...]], dict[ModuleKey, LoraPair]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._adapters)

    @property
    def source(self) -> AdapterSource:
        """The adapters as a replica takes them."""
        library = AdapterLibrary({name: Path(name) for name in self._adapters})
        return AdapterSource(library, self.load, self.outline, self.find_largest_rank, self.find_used_groups)

    def load(
        self,
        name: str,
        folder: Path,
        shape: BaseShape,
        dtype: torch.dtype,
        pairs: Mapping[ModuleKey, LoraPair] | None = None,
    ) -> AdapterWeights:
        """Weights of the adapter called `name`, in `pairs` if there are any; its folder does not exist."""
        adapter = self._adapters[name]
        size = adapter.lora_rank, adapter.modules
        if size not in self._pairs:
            self._pairs[size] = _random_pairs(adapter, shape, dtype)
        made = self._pairs[size]
        if pairs is not None:
            for key, pair in made.items():
                for target, source in zip(pairs[key].tensors, pair.tensors, strict=True):
                    target.copy_(source)
            return AdapterWeights(name, pairs)
        if not self._packed:
            made = {key: LoraPair(pair.a.clone(), pair.b_rows.clone()) for key, pair in made.items()}
        return AdapterWeights(name, made)

    def outline(self, name: str, folder: Path, shape: BaseShape) -> AdapterOutline:
        """What `load` will make."""
        adapter = self._adapters[name]
        keys = [(layer, module) for layer in range(shape.num_layers) for module in adapter.modules]
        return AdapterOutline(name, dict.fromkeys(keys, adapter.lora_rank))

    def find_largest_rank(self, library: AdapterLibrary, shape: BaseShape, limit: int) -> int:
        """See `AdapterSource`; they have no files that could be read."""
        ranks = [self._adapters[name].lora_rank for name in library.names]
        return max([0, *(lora_rank for lora_rank in ranks if lora_rank <= limit)])

    def find_used_groups(self, library: AdapterLibrary, shape: BaseShape) -> frozenset[int]:
        """See `AdapterSource`."""
        changed = {module for name in library.names for module in self._adapters[name].modules}
        return frozenset(i for i, modules in enumerate(FUSED_MODULES) if changed.intersection(modules))

    def forget_content(self) -> None:
        """Free what later adapters would have been made of."""
        self._pairs.clear()


def _random_pairs(
    adapter: SyntheticAdapter, shape: BaseShape, dtype: torch.dtype
) -> dict[ModuleKey, LoraPair]:
    generator = torch.Generator().manual_seed(adapter.lora_rank)
    weights = torch.empty(adapter.num_weights(shape), dtype=dtype)
    weights.normal_(std=_WEIGHT_STD, generator=generator)
    pairs: dict[ModuleKey, LoraPair] = {}
    end = 0
    for layer in range(shape.num_layers):
        for module in adapter.modules:
            sides: list[torch.Tensor] = []
            for width in shape.module_shape(module):
                first, end = end, end + adapter.lora_rank * width
                sides.append(weights[first:end].view(adapter.lora_rank, width))
            pairs[layer, module] = LoraPair(*sides)
    return pairs
