"""From an adapter's size to the projections it changes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caraserve_cli.core import LORA_MODULES
from caraserve_cli.perf.adapter_ops import adapter_ops
from tests.perf.h200 import LLAMA2_7B

# Grouped-query attention, so that no two modules have equal widths but k and v, gate and up.
GROUPED = replace(LLAMA2_7B, num_kv_heads=8)


def elements(modules: tuple[str, ...]) -> int:
    return sum(sum(GROUPED.module_shape(module)) for module in modules)


@pytest.mark.parametrize(
    ("modules", "out_widths"),
    [
        (("q_proj",), [(4096,)]),
        (("q_proj", "v_proj"), [(4096, 1024)]),
        (("q_proj", "k_proj", "v_proj"), [(4096, 1024, 1024)]),
        (("q_proj", "k_proj", "v_proj", "o_proj"), [(4096, 1024, 1024), (4096,)]),
        (LORA_MODULES, [(4096, 1024, 1024), (4096,), (11008, 11008), (4096,)]),
    ],
)
def test_modules_are_told_by_their_size(modules: tuple[str, ...], out_widths: list[tuple[int, ...]]) -> None:
    assert [op.out_widths for op in adapter_ops(GROUPED, elements(modules))] == out_widths


def test_the_nearest_where_ranks_differ() -> None:
    assert adapter_ops(GROUPED, elements(LORA_MODULES) - 900) == adapter_ops(GROUPED, elements(LORA_MODULES))
    assert adapter_ops(GROUPED, 1) == adapter_ops(GROUPED, elements(("k_proj",)))


def test_shares_and_results_are_those_of_whole_projections() -> None:
    """Base and result buffer know no single module: q, k and v are one product."""
    (qkv,) = adapter_ops(GROUPED, elements(("q_proj",)))
    assert qkv.group_out_width == 6144
    every = adapter_ops(GROUPED, elements(LORA_MODULES))
    assert sum(op.gpu_share for op in every) == pytest.approx(1)
    assert qkv.gpu_share == every[0].gpu_share
