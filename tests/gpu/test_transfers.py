"""The order of copies and of what reads them, on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caraserve_cli.adapters.copy_lane import open_lane
from caraserve_cli.adapters.extents import aligned_bytes
from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.adapters.packing import Packer, UnpaddedForm
from caraserve_cli.adapters.transfer import LayerCopy
from caraserve_cli.adapters.transfers import Transfers
from caraserve_cli.adapters.weights import AdapterWeights, LoraPair
from caraserve_cli.core import BaseShape

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NUM_LAYERS = 8
LAYER_ELEMENTS = 16 * 2**20  # 64 MB, a millisecond on the link
STARTS = tuple(LAYER_ELEMENTS * layer for layer in range(NUM_LAYERS + 1))
LONG_CYCLES = 50_000_000  # tens of milliseconds, more than all copies take


def pinned(value: float) -> torch.Tensor:
    return torch.full((STARTS[-1],), value).pin_memory()


def make_transfers(device: torch.device) -> Transfers:
    return Transfers(open_lane(device), NUM_LAYERS)


def test_readers_wait_for_their_layers() -> None:
    device = torch.device("cuda")
    transfers, pool, source = make_transfers(device), torch.zeros(STARTS[-1], device=device), pinned(1)
    torch.cuda.synchronize()
    copies = transfers.open([LayerCopy(pool, source, STARTS)], LayerOrder())
    seen = []
    for layer in range(NUM_LAYERS):
        copies.wait_for_layers((layer,))
        seen.append(pool[STARTS[layer] : STARTS[layer + 1]].min())
    assert [float(value) for value in seen] == [1.0] * NUM_LAYERS


def test_each_stream_waits_for_what_it_reads() -> None:
    """That another one waits already keeps nobody else from reading too early."""
    device = torch.device("cuda")
    transfers, pool, source = make_transfers(device), torch.zeros(STARTS[-1], device=device), pinned(1)
    torch.cuda.synchronize()
    copies = transfers.open([LayerCopy(pool, source, STARTS)], LayerOrder())
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        copies.wait_for_layers(range(NUM_LAYERS))
    copies.wait_for_layers((0,))
    first = pool[: STARTS[1]].min()
    copies.wait_for_layers(range(NUM_LAYERS))
    assert (float(first), float(pool.min())) == (1.0, 1.0)
    assert len(transfers.take_stall().waits) == 3


def test_copies_go_on_beneath_other_work() -> None:
    """What does not wait for a copy does not see the end of it: it was not queued behind it."""
    device = torch.device("cuda")
    transfers, pool, source = make_transfers(device), torch.zeros(STARTS[-1], device=device), pinned(1)
    torch.cuda.synchronize()
    copies = transfers.open([LayerCopy(pool, source, STARTS)], LayerOrder())
    copies.begin()
    early = pool[-1].clone()
    copies.wait()
    late = pool[-1].clone()
    assert (float(early), float(late)) == (0.0, 1.0)


def test_the_time_is_that_of_the_copies() -> None:
    device = torch.device("cuda")
    transfers, pool, source = make_transfers(device), torch.zeros(STARTS[-1], device=device), pinned(1)
    copies = transfers.open([LayerCopy(pool, source, STARTS)], LayerOrder())
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record()
    copies.wait()
    after.record()
    assert transfers.take_copied_ms() == 0
    torch.cuda.synchronize()
    transfers.settle()
    # Nothing else was done in between: the copies' time is in it, and most of it.
    around_ms = before.elapsed_time(after)
    assert around_ms / 2 < transfers.take_copied_ms() <= around_ms
    assert transfers.take_copied_ms() == 0


def test_layers_that_are_needed_last_come_last() -> None:
    device = torch.device("cuda")
    transfers, pool, source = make_transfers(device), torch.zeros(STARTS[-1], device=device), pinned(1)
    torch.cuda.synchronize()
    copies = transfers.open([LayerCopy(pool, source, STARTS)], LayerOrder(first_layer=5))
    copies.begin()
    copies.wait_for_layers((5,))
    early, late = pool[0].clone(), pool[STARTS[5]].clone()
    copies.wait_for_layers((0,))
    assert (float(early), float(late), float(pool[0])) == (0.0, 1.0, 1.0)
    assert not transfers.are_over
    transfers.block(10.0)
    assert transfers.are_over
    assert copies.has_arrived


def test_a_pool_waits_for_readers_of_what_it_gives_away() -> None:
    """Evict an adapter that work under way reads, load another into its place."""
    device = torch.device("cuda")
    shape = BaseShape(
        num_layers=4,
        hidden_size=256,
        num_heads=4,
        num_kv_heads=4,
        head_dim=64,
        intermediate_size=512,
        vocab_size=32,
    )
    packer = Packer(shape, UnpaddedForm(), pinned=True)
    adapters = [
        packer.pack(
            AdapterWeights(
                str(value),
                {
                    (layer, "q_proj"): LoraPair(torch.full((8, 256), value), torch.full((8, 256), value))
                    for layer in range(4)
                },
            )
        )
        for value in (1.0, 2.0)
    ]
    pool = PackedPool(shape, aligned_bytes(adapters[0].num_bytes), 1, torch.float32, device)
    pool.load(0, adapters[0], 0)
    pool.start_copies()
    pool.transfers.wait()
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG_CYCLES)  # type: ignore[no-untyped-call]
    before = pool.weights.clone()
    pool.note_step(np.array([0]))
    pool.evict(0)
    pool.load(0, adapters[1], 0)
    pool.start_copies()
    pool.transfers.wait()
    assert float(before.max()) == 1.0
    assert float(pool.weights.max()) == 2.0


def test_what_work_under_way_reads_is_not_overwritten() -> None:
    device = torch.device("cuda")
    transfers, pool, source = make_transfers(device), torch.zeros(STARTS[-1], device=device), pinned(1)
    torch.cuda.synchronize()
    torch.cuda._sleep(LONG_CYCLES)  # type: ignore[no-untyped-call]
    before = pool.max()
    transfers.mark_stale()
    copies = transfers.open([LayerCopy(pool, source, STARTS)], LayerOrder())
    copies.wait()
    after = pool.min()
    assert (float(before), float(after)) == (0.0, 1.0)
