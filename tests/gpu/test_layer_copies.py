"""The order of copies and of what reads them, on a GPU."""

from __future__ import annotations

import pytest
import torch

from caraserve_cli.adapters.layer_copies import LayerCopies

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NUM_LAYERS = 8
LAYER_ELEMENTS = 16 * 2**20  # 64 MB, a millisecond on the link
STARTS = tuple(LAYER_ELEMENTS * layer for layer in range(NUM_LAYERS + 1))
LONG_CYCLES = 50_000_000  # tens of milliseconds, more than all copies take


def pinned(value: float) -> torch.Tensor:
    return torch.full((STARTS[-1],), value).pin_memory()


def test_readers_wait_for_their_layers() -> None:
    device = torch.device("cuda")
    copies, pool, source = LayerCopies(device, NUM_LAYERS), torch.zeros(STARTS[-1], device=device), pinned(1)
    torch.cuda.synchronize()
    copies.queue(0, pool, source, STARTS)
    copies.start()
    seen = []
    for layer in range(NUM_LAYERS):
        copies.wait_for_layer(layer)
        seen.append(pool[STARTS[layer] : STARTS[layer + 1]].min())
    assert [float(value) for value in seen] == [1.0] * NUM_LAYERS


def test_copies_go_on_beneath_other_work() -> None:
    """What does not wait for a copy does not see the end of it: it was not queued behind it."""
    device = torch.device("cuda")
    copies, pool, source = LayerCopies(device, NUM_LAYERS), torch.zeros(STARTS[-1], device=device), pinned(1)
    torch.cuda.synchronize()
    copies.queue(0, pool, source, STARTS)
    copies.start()
    early = pool[-1].clone()
    copies.wait()
    late = pool[-1].clone()
    assert (float(early), float(late)) == (0.0, 1.0)


def test_what_work_under_way_reads_is_not_overwritten() -> None:
    device = torch.device("cuda")
    copies, pool, source = LayerCopies(device, NUM_LAYERS), torch.zeros(STARTS[-1], device=device), pinned(1)
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG_CYCLES)  # type: ignore[no-untyped-call]
    before = pool.max()
    copies.mark_stale()
    copies.queue(0, pool, source, STARTS)
    copies.start()
    copies.wait()
    after = pool.min()
    assert (float(before), float(after)) == (0.0, 1.0)
