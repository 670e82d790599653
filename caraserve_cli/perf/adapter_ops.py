"""Which modules an adapter changes, told from its size: what planning knows of an adapter is no more.

Knows no files. Exact for an adapter with one rank on the same modules of every layer, and for one with
several the nearest such adapter.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import combinations
from typing import NamedTuple

from caraserve_cli.core import FUSED_MODULES, LORA_MODULES, BaseShape


class AdapterOp(NamedTuple):
    """One fused projection of a layer that an adapter changes.

    Attributes:
        in_width: of the projection's input.
        out_widths: of the modules changed.
        group_out_width: of all modules of the projection, side by side: what a result has.
        gpu_share: of a layer's multiplications in the base, what the projection makes.
    """

    in_width: int
    out_widths: tuple[int, ...]
    group_out_width: int
    gpu_share: float


# As many sizes of adapters as are met again and again. Chosen, not measured.
@lru_cache(maxsize=1024)
def adapter_ops(shape: BaseShape, rank_row_elements: int) -> tuple[AdapterOp, ...]:
    """The ops in each layer of an adapter.

    Args:
        shape: of the base.
        rank_row_elements: elements of all its A and B in one layer, for each rank.
    """
    sets = _module_sets(shape)
    at = bisect_left(sets, (rank_row_elements,))
    nearest = min(sets[max(0, at - 1) : at + 1], key=lambda each: abs(each[0] - rank_row_elements))
    return _ops_of(shape, nearest[1])


@cache
def _module_sets(shape: BaseShape) -> Sequence[tuple[int, tuple[str, ...]]]:
    """(elements for each rank, modules), by elements; of sets with equal elements the smallest one, and of
    those the first in the order of the forward pass."""
    sets: dict[int, tuple[str, ...]] = {}
    for size in range(1, len(LORA_MODULES) + 1):
        for modules in combinations(LORA_MODULES, size):
            sets.setdefault(sum(sum(shape.module_shape(module)) for module in modules), modules)
    return sorted(sets.items())


def _ops_of(shape: BaseShape, modules: Sequence[str]) -> tuple[AdapterOp, ...]:
    products = [sum(_area(shape, module) for module in group) for group in FUSED_MODULES]
    ops: list[AdapterOp] = []
    for group, group_products in zip(FUSED_MODULES, products, strict=True):
        out_widths = tuple(shape.module_shape(module)[1] for module in group if module in modules)
        if out_widths:
            all_out = sum(shape.module_shape(module)[1] for module in group)
            share = group_products / sum(products)
            ops.append(AdapterOp(shape.module_shape(group[0])[0], out_widths, all_out, share))
    return tuple(ops)


def _area(shape: BaseShape, module: str) -> int:
    in_width, out_width = shape.module_shape(module)
    return in_width * out_width
