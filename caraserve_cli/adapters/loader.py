"""One PEFT folder -> canonical weights, or their outline: the only place where an adapter's weights are read.

One of several processes that hold a base together keeps its part of them. It reads and checks all: what is
refused is refused by everyone. Knows no library and no cache.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from caraserve_cli.adapters.file_stamp import FILES_CHANGED
from caraserve_cli.adapters.module_key import ModuleKey
from caraserve_cli.adapters.peft_config import PeftConfig
from caraserve_cli.adapters.peft_weights import PairSource, read_layout
from caraserve_cli.adapters.weight_file import WeightFile, open_weight_file
from caraserve_cli.adapters.weights import AdapterOutline, AdapterWeights, LoraPair
from caraserve_cli.core import BaseShape
from caraserve_cli.errors import AdapterError
from caraserve_cli.shard import WHOLE, Shard


class Cut(NamedTuple):
    """Which columns of a pair's tensors are kept, each None for all of them."""

    a: slice | None = None
    b_rows: slice | None = None
    bias: slice | None = None

    @classmethod
    def of(cls, module: str, shape: BaseShape, shard: Shard) -> Cut:
        """What a process keeps of a module; `shape` is that of the whole base."""
        in_width, out_width = shape.module_shape(module)
        return cls(
            _unless_all(shard.inputs(module, in_width), in_width),
            _unless_all(shard.outputs(module, out_width), out_width),
            _unless_all(shard.bias(module, out_width), out_width),
        )


def _unless_all(columns: slice, width: int) -> slice | None:
    return None if columns == slice(0, width) else columns


def load_adapter(
    name: str,
    folder: Path,
    shape: BaseShape,
    dtype: torch.dtype,
    pairs: Mapping[ModuleKey, LoraPair] | None = None,
    shard: Shard = WHOLE,
) -> AdapterWeights:
    """The weights of the adapter in `folder`, checked against the base and copied out of the file.

    Args:
        name: in messages.
        folder: of the adapter.
        shape: of the whole base.
        dtype: of the weights.
        pairs: memory to read them into, of the sizes that the adapter's outline and the shard tell; None for
            new memory.
        shard: the part of them to keep.

    Raises:
        AdapterError: the adapter cannot be served; the message names the field or tensor at fault.
    """
    config = PeftConfig.read(name, folder)
    with open_weight_file(name, folder) as file:
        sources = read_layout(name, config, file.headers, shape)
        outline = _outline(name, sources)
        if pairs is None:
            pairs = _allocate(outline, shard.cut(shape), dtype)
        elif AdapterWeights(name, pairs).outline != outline:
            raise AdapterError(name, FILES_CHANGED)
        for key, source in sources.items():
            _read_pair(name, file, source, pairs[key], Cut.of(key[1], shape, shard))
    return AdapterWeights(name, {key: pairs[key] for key in sources})


def outline_adapter(name: str, folder: Path, shape: BaseShape) -> AdapterOutline:
    """The outline of the adapter in `folder`, from its config and the header of its weight file.

    Raises:
        AdapterError: as `load_adapter`, but for what only the weights tell: values that are not finite.
    """
    config = PeftConfig.read(name, folder)
    with open_weight_file(name, folder, headers_only=True) as file:
        return _outline(name, read_layout(name, config, file.headers, shape))


def _outline(name: str, sources: Mapping[ModuleKey, PairSource]) -> AdapterOutline:
    return AdapterOutline(
        name,
        {key: source.lora_rank for key, source in sources.items()},
        frozenset(key for key, source in sources.items() if source.bias_name is not None),
    )


def _allocate(outline: AdapterOutline, shape: BaseShape, dtype: torch.dtype) -> dict[ModuleKey, LoraPair]:
    pairs: dict[ModuleKey, LoraPair] = {}
    for key, lora_rank in outline.lora_ranks.items():
        in_width, out_width = shape.module_shape(key[1])
        pairs[key] = LoraPair(
            torch.empty(lora_rank, in_width, dtype=dtype),
            torch.empty(lora_rank, out_width, dtype=dtype),
            torch.empty(out_width, dtype=dtype) if key in outline.biased else None,
        )
    return pairs


def _read_pair(adapter: str, file: WeightFile, source: PairSource, pair: LoraPair, cut: Cut) -> None:
    _copy(adapter, source.a_name, file.read(source.a_name), pair.a, cut.a)
    # Transposed in the file's dtype: scaled first, in float32, it would take three times as long.
    b_rows = file.read(source.b_name).t().contiguous()
    _copy(adapter, source.b_name, b_rows, pair.b_rows, cut.b_rows, source.scale)
    if source.bias_name is not None:
        assert pair.bias is not None
        own = pair.bias
        if cut.bias is not None:
            # Of what is added once, all but the first process have zeros.
            own = pair.bias.zero_()[: cut.bias.stop - cut.bias.start]
        _copy(adapter, source.bias_name, file.read(source.bias_name), own, cut.bias, source.scale)


def _copy(
    adapter: str,
    name: str,
    stored: torch.Tensor,
    target: torch.Tensor,
    columns: slice | None,
    scale: float | None = None,
) -> None:
    """Fill `target` with the tensor called `name`, or some columns of it, in its dtype; refuses what is not
    finite there, in whichever column."""
    # Scaled in float32 before the cast, so that the scale costs no second rounding.
    whole = target if columns is None else torch.empty_like(stored, dtype=target.dtype)
    whole.copy_(stored if scale is None else stored.float() * scale)
    if columns is not None:
        target.copy_(whole[..., columns])
    if not _all_finite(whole):
        reason = (
            f"does not fit {str(whole.dtype).removeprefix('torch.')}; choose another --dtype"
            if _all_finite(stored)
            else "holds NaN or infinite values; train or save the adapter again"
        )
        raise AdapterError(adapter, f"tensor '{name}' {reason}")


def _all_finite(values: torch.Tensor) -> bool:
    # aminmax passes NaN on, and reads bfloat16 sixty times as fast as isfinite does on a CPU.
    return all(math.isfinite(extreme) for extreme in torch.stack(torch.aminmax(values)).tolist())
