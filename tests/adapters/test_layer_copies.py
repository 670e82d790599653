"""Copies by layer, on the CPU, where they are done when they start; tests/gpu has their order on a GPU."""

from __future__ import annotations

import pytest
import torch

from caraserve_cli.adapters.layer_copies import LAYERS_PER_COPY, LayerCopies

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_layers", [1, LAYERS_PER_COPY, 2 * LAYERS_PER_COPY + 1])
def test_everything_is_copied_and_nothing_else(num_layers: int) -> None:
    copies = LayerCopies(CPU, num_layers)
    starts = [0]
    for layer in range(num_layers):
        starts.append(starts[-1] + layer % 3)  # some layers have nothing
    pool = torch.full((100,), -1.0)
    sources = [torch.arange(starts[-1]) + 1.0, torch.arange(5) + 100.0]
    copies.queue(pool[10:][: starts[-1]], sources[0], starts)
    copies.queue(pool[60:65], sources[1], (0, *[5] * num_layers))
    assert bool((pool == -1).all()), "nothing is copied before the start"
    copies.start()
    assert torch.equal(pool[10:][: starts[-1]], sources[0])
    assert torch.equal(pool[60:65], sources[1])
    assert int((pool == -1).sum()) == 100 - starts[-1] - 5
    copies.wait_for_layer(num_layers - 1)
    copies.wait()
    pool.fill_(-1)
    copies.start()
    assert bool((pool == -1).all()), "what was copied is not copied again"
