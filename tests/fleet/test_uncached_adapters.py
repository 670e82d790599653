"""Adapters that lie one behind the other, and again at the start."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch

from caraserve_cli.coldstart.arena_view import ArenaView
from caraserve_cli.fleet.uncached_adapters import UncachedAdapters
from caraserve_kernels.lora_layout import AdapterLayout, FusedGroup

_GROUP = FusedGroup(("q_proj", "k_proj"), 32, (32, 16))
_LAYOUT = AdapterLayout.build((_GROUP,), 2, {(layer, "q_proj"): 4 for layer in (0, 1)})


def test_each_lies_behind_the_last_one_and_at_the_end_there_is_the_start() -> None:
    size = _LAYOUT.num_elements
    with closing(UncachedAdapters(2 * size + 64, torch.float32)) as adapters:
        packed = [adapters.next(_LAYOUT).packed for _ in range(5)]
    offsets = [each.arena_offset_bytes for each in packed if each is not None]
    assert offsets == [0, 4 * size, 0, 4 * size, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_workers_see_the_weights(dtype: torch.dtype) -> None:
    with closing(UncachedAdapters(_LAYOUT.num_elements, dtype)) as adapters:
        weights = adapters.next(_LAYOUT)
        seen = ArenaView(adapters.fd, adapters.num_bytes, dtype).elements
    assert weights.packed is not None
    assert torch.equal(seen[: _LAYOUT.num_elements], weights.packed.blob)
    piece = _LAYOUT.pieces[1, "q_proj"]
    assert torch.equal(weights.pairs[1, "q_proj"].a.reshape(-1), seen[piece.a_offset :][: 4 * 32])
    assert torch.equal(weights.pairs[1, "q_proj"].b_rows.reshape(-1), seen[piece.b_offset :][: 4 * 32])
    assert weights.packed.blob.std() > 0
