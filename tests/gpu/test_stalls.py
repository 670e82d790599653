"""How long work on a GPU stands still for copies, by its own clock."""

from __future__ import annotations

import pytest
import torch

from caraserve_cli.adapters.copy_lane import open_lane
from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.adapters.transfer import LayerCopy, Transfer
from caraserve_cli.adapters.transfers import Transfers

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NUM_LAYERS = 8
LAYER_ELEMENTS = 16 * 2**20  # 64 MB, a millisecond on the link
STARTS = tuple(LAYER_ELEMENTS * layer for layer in range(NUM_LAYERS + 1))
LONG_CYCLES = 50_000_000  # tens of milliseconds, more than all copies take


def open_transfer() -> tuple[Transfers, Transfer]:
    device = torch.device("cuda")
    transfers = Transfers(open_lane(device), NUM_LAYERS)
    pool, source = torch.zeros(STARTS[-1], device=device), torch.ones(STARTS[-1]).pin_memory()
    torch.cuda.synchronize()
    return transfers, transfers.open([LayerCopy(pool, source, STARTS)], LayerOrder())


def test_who_comes_at_once_stands_still_for_most_of_the_load() -> None:
    transfers, transfer = open_transfer()
    for layer in range(NUM_LAYERS):
        transfer.wait_for_layers((layer,))
    stall = transfers.take_stall()
    torch.cuda.synchronize()
    assert len(stall.waits) == len(LayerOrder().groups(NUM_LAYERS))
    assert 0.5 * transfer.lasted_ms < stall.ms <= 1.5 * transfer.lasted_ms
    assert transfer.took_ms <= 1.01 * transfer.lasted_ms


def test_who_comes_late_does_not_stand_still() -> None:
    transfers, transfer = open_transfer()
    transfer.begin()
    torch.cuda._sleep(LONG_CYCLES)  # type: ignore[no-untyped-call]
    for layer in range(NUM_LAYERS):
        transfer.wait_for_layers((layer,))
    stall = transfers.take_stall()
    torch.cuda.synchronize()
    assert transfer.lasted_ms > 0
    assert stall.ms == 0
