"""Files of adapters in Ray's object store, on their way to machines that do not see their folders."""

from __future__ import annotations

from collections import OrderedDict
from functools import cached_property
from typing import Any

import ray

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.fleet.shipped_adapters import pack_config, pack_weights

# Weights that are kept in the store for the next machine that asks. Chosen, not measured.
_MOST_KEPT = 32


class Parcels:
    """The driver's side: files are read when they are first asked for.

    Args:
        library: of the adapters.
    """

    def __init__(self, library: AdapterLibrary) -> None:
        self._library = library
        self._weights: OrderedDict[str, Any] = OrderedDict()  # references, least recently asked for first

    @cached_property
    def configs(self) -> Any:
        """A reference to the configs of all adapters, by name."""
        return ray.put({name: pack_config(self._library.path(name)) for name in self._library.names})

    def weights(self, adapter: str) -> Any:
        """A reference to the weight file of an adapter."""
        kept = self._weights.get(adapter)
        if kept is None:
            kept = self._weights[adapter] = ray.put(pack_weights(self._library.path(adapter)))
        self._weights.move_to_end(adapter)
        while len(self._weights) > _MOST_KEPT:
            self._weights.popitem(last=False)
        return kept
