"""One PEFT folder -> canonical weights: the only place where an adapter's weights are read.

Knows no library and no cache.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from caraserve_cli.adapters.peft_config import PeftConfig
from caraserve_cli.adapters.peft_weights import PairSource, read_layout
from caraserve_cli.adapters.weight_file import WeightFile, open_weight_file
from caraserve_cli.adapters.weights import AdapterWeights, LoraPair
from caraserve_cli.core import BaseShape
from caraserve_cli.errors import AdapterError


def load_adapter(name: str, folder: Path, shape: BaseShape, dtype: torch.dtype) -> AdapterWeights:
    """The weights of the adapter in `folder`, checked against the base and copied out of the file.

    Raises:
        AdapterError: the adapter cannot be served; the message names the field or tensor at fault.
    """
    config = PeftConfig.read(name, folder)
    with open_weight_file(name, folder) as file:
        layout = read_layout(name, config, file.headers, shape)
        pairs = {key: _read_pair(name, file, source, dtype) for key, source in layout.items()}
    return AdapterWeights(name, pairs)


def _read_pair(adapter: str, file: WeightFile, source: PairSource, dtype: torch.dtype) -> LoraPair:
    return LoraPair(
        a=_read(adapter, file, source.a_name, dtype),
        b_rows=_read(adapter, file, source.b_name, dtype, source.scale).t().contiguous(),
        bias=None
        if source.bias_name is None
        else _read(adapter, file, source.bias_name, dtype, source.scale),
    )


def _read(
    adapter: str, file: WeightFile, name: str, dtype: torch.dtype, scale: float | None = None
) -> torch.Tensor:
    """A contiguous copy in `dtype` that shares no memory with the file; refuses what is not finite there."""
    stored = file.read(name)
    # Scaled in float32 before the cast, so that the scale costs no second rounding.
    values = stored if scale is None else stored.float() * scale
    copy = torch.empty(stored.shape, dtype=dtype).copy_(values)
    if not _all_finite(copy):
        reason = (
            f"does not fit {str(dtype).removeprefix('torch.')}; choose another --dtype"
            if _all_finite(stored)
            else "holds NaN or infinite values; train or save the adapter again"
        )
        raise AdapterError(adapter, f"tensor '{name}' {reason}")
    return copy


def _all_finite(values: torch.Tensor) -> bool:
    # aminmax passes NaN on, and reads bfloat16 sixty times as fast as isfinite does on a CPU.
    return all(math.isfinite(extreme) for extreme in torch.stack(torch.aminmax(values)).tolist())
