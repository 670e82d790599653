"""The content of an adapter's weights, for comparisons."""

from __future__ import annotations

from caraserve_cli.adapters.module_key import ModuleKey
from caraserve_cli.adapters.weights import AdapterWeights


def content_of(weights: AdapterWeights) -> dict[tuple[ModuleKey, int], tuple[str, list[object]]]:
    """Dtype and values of each module's A, B and bias: equal for adapters that compute the same."""
    return {
        (key, index): (str(tensor.dtype), tensor.tolist())
        for key, pair in weights.pairs.items()
        for index, tensor in enumerate(pair.tensors)
    }
