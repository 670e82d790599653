"""What one of several processes that hold a base together keeps of its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from caraserve_cli.adapters.largest_rank import find_largest_rank
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.adapters.loader import load_adapter, outline_adapter
from caraserve_cli.adapters.module_key import ModuleKey
from caraserve_cli.adapters.weights import AdapterOutline, AdapterWeights, LoraPair
from caraserve_cli.core import BaseShape
from caraserve_cli.shard import Shard


@dataclass(frozen=True, slots=True)
class AdapterShare:
    """Reads adapters for a host store whose shape is that of the process's part: they must fit the whole
    base.

    Attributes:
        whole_shape: of the base.
        shard: the part to keep.
    """

    whole_shape: BaseShape
    shard: Shard

    def load(
        self,
        name: str,
        folder: Path,
        _shape: BaseShape,
        dtype: torch.dtype,
        pairs: Mapping[ModuleKey, LoraPair] | None = None,
    ) -> AdapterWeights:
        """See `loader.load_adapter`."""
        return load_adapter(name, folder, self.whole_shape, dtype, pairs, self.shard)

    def outline(self, name: str, folder: Path, _shape: BaseShape) -> AdapterOutline:
        """See `loader.outline_adapter`."""
        return outline_adapter(name, folder, self.whole_shape)

    def find_largest_rank(self, library: AdapterLibrary, _shape: BaseShape, limit: int) -> int:
        """See `largest_rank.find_largest_rank`."""
        return find_largest_rank(library, self.whole_shape, limit)
