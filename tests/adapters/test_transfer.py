"""Copies by layer, on the CPU, where they are done when they begin; tests/gpu has their order on a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from caraserve_cli.adapters import copy_lane
from caraserve_cli.adapters import transfers as transfers_module
from caraserve_cli.adapters.copy_lane import EmulatedLink, open_lane
from caraserve_cli.adapters.layer_order import LAYERS_PER_COPY, LayerOrder
from caraserve_cli.adapters.transfer import LayerCopy, Transfer
from caraserve_cli.adapters.transfers import Transfers
from caraserve_kernels.link_clock import MAX_PIECE_NS
from tests.moved_clock import MovedClock

CPU = torch.device("cpu")


@given(num_layers=st.integers(1, 20), first_layer=st.integers(0, 20), in_one_piece=st.booleans())
def test_every_layer_is_in_one_group(num_layers: int, first_layer: int, in_one_piece: bool) -> None:
    order = LayerOrder(min(first_layer, num_layers), in_one_piece)
    groups = order.groups(num_layers)
    layers = [layer for first, end in groups for layer in range(first, end)]
    assert sorted(layers) == list(range(num_layers))
    assert all(first < end for first, end in groups)
    if in_one_piece:
        assert len(groups) == 1
    else:
        assert layers == [*range(order.first_layer, num_layers), *range(order.first_layer)]
        assert max(end - first for first, end in groups) <= LAYERS_PER_COPY


def test_the_first_layer_is_not_kept_waiting_by_the_next() -> None:
    assert LayerOrder().groups(9)[0] == (0, 1)
    assert LayerOrder(first_layer=5).groups(9)[0] == (5, 6)


@pytest.mark.parametrize("num_layers", [1, LAYERS_PER_COPY, 2 * LAYERS_PER_COPY + 1])
@pytest.mark.parametrize("order", [LayerOrder(), LayerOrder(1), LayerOrder(in_one_piece=True)], ids=str)
def test_everything_is_copied_and_nothing_else(num_layers: int, order: LayerOrder) -> None:
    starts = [0]
    for layer in range(num_layers):
        starts.append(starts[-1] + layer % 3)  # some layers have nothing
    pool = torch.full((100,), -1.0)
    sources = [torch.arange(starts[-1]) + 1.0, torch.arange(5) + 100.0]
    transfers = Transfers(open_lane(CPU), num_layers)
    transfer = transfers.open(
        [LayerCopy(pool[10:][: starts[-1]], sources[0], starts), LayerCopy(pool[60:65], sources[1])], order
    )
    assert bool((pool == -1).all()), "nothing is copied before it begins"
    assert not transfer.has_arrived
    transfer.wait()
    assert torch.equal(pool[10:][: starts[-1]], sources[0])
    assert torch.equal(pool[60:65], sources[1])
    assert int((pool == -1).sum()) == 100 - starts[-1] - 5
    assert transfer.has_arrived
    pool.fill_(-1)
    transfers.begin()
    transfers.wait()
    assert bool((pool == -1).all()), "what was copied is not copied again"


def make_transfer(order: LayerOrder, num_layers: int = 12) -> tuple[Transfer, Tensor]:
    """Layer i has the one element i + 1; what no layer can do without is element 0."""
    pool = torch.zeros(num_layers + 1)
    copies = [
        LayerCopy(pool[1:], torch.ones(num_layers), range(num_layers + 1)),
        LayerCopy(pool[:1], torch.ones(1)),
    ]
    return Transfers(open_lane(CPU), num_layers).open(copies, order), pool


def test_a_layer_waits_for_itself_and_what_is_copied_before_it() -> None:
    transfer, pool = make_transfer(LayerOrder(first_layer=3))
    transfer.wait_for_layers((3,))
    assert bool(pool[0] == 1)
    assert bool(pool[1 + 3] == 1)
    assert bool(pool[1 + 0] == 0), "needed last, not begun yet"
    transfer.wait_for_layers((0,))
    assert bool((pool[[0, 1, *range(4, 13)]] == 1).all())


@pytest.fixture
def _moved_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the link and of whoever waits for it."""
    clock = MovedClock()
    monkeypatch.setattr(copy_lane, "time", clock)
    monkeypatch.setattr(transfers_module, "time", clock)


@pytest.mark.usefixtures("_moved_clock")
def test_what_is_still_to_come_is_counted_by_groups_of_layers() -> None:
    link = EmulatedLink(torch.zeros(1, dtype=torch.int64), bytes_per_s=4000)
    copy = LayerCopy(torch.zeros(300), torch.ones(300), [0, 100, 300])
    transfer = Transfer(open_lane(CPU, link), [copy], [(0, 1), (1, 2)])
    assert transfer.left_bytes == 1200
    transfer.begin()
    assert transfer.left_bytes == 1200
    transfer.wait_for_layers((0,))
    assert transfer.left_bytes == 800
    transfer.wait()
    assert transfer.left_bytes == 0


def test_who_used_the_sources_is_told_once_when_all_has_come() -> None:
    transfers, told = Transfers(open_lane(CPU), 1), []
    source = torch.ones(3)
    first = transfers.open([LayerCopy(torch.zeros(3), source)], LayerOrder(), lambda: told.append("first"))
    transfers.open([LayerCopy(torch.zeros(3), source)], LayerOrder(), lambda: told.append("second"))
    transfers.settle()
    assert told == []
    first.begin()
    transfers.settle()
    assert told == ["first"]
    transfers.begin()
    transfers.settle()
    transfers.settle()
    assert told == ["first", "second"]
    assert transfers.are_over


@pytest.mark.usefixtures("_moved_clock")
def test_on_a_slower_link_copies_arrive_one_after_the_other() -> None:
    """A tenth of a second each; what was copied counts only then."""
    link = EmulatedLink(torch.zeros(1, dtype=torch.int64), bytes_per_s=4000)
    transfers = Transfers(open_lane(CPU, link), 1)
    first, second = (
        transfers.open([LayerCopy(torch.zeros(100), torch.ones(100))], LayerOrder()) for _ in range(2)
    )
    transfers.begin()
    assert not first.has_arrived
    assert transfers.backlog_ms > 0
    first.wait()
    assert first.has_arrived
    assert not second.has_arrived, "it came after the first"
    second.wait()
    assert second.has_arrived
    transfers.settle()
    assert transfers.take_copied_ms() == pytest.approx(200)
    assert transfers.take_copied_ms() == 0


@pytest.mark.usefixtures("_moved_clock")
def test_who_needs_what_has_not_come_stands_still_and_is_told_once() -> None:
    """Pieces of a tenth and two tenths of a second; the second transfer comes before anyone needs it."""
    link = EmulatedLink(torch.zeros(1, dtype=torch.int64), bytes_per_s=4000)
    transfers = Transfers(open_lane(CPU, link), 2)
    slow, late = (
        transfers.open([LayerCopy(torch.zeros(300), torch.ones(300), [0, 100, 300])], LayerOrder())
        for _ in range(2)
    )
    assert transfers.opened_bytes == 2400
    assert transfers.take_stall().ms == 0
    slow.wait_for_layers((0,))
    first = transfers.take_stall()
    slow.wait_for_layers((1,))
    second = transfers.take_stall()
    assert (len(first.waits), len(second.waits)) == (1, 1)
    assert first.ms > 0
    assert second.ms > 0
    transfers.settle()
    assert slow.lasted_ms == pytest.approx(300)
    assert transfers.take_stall().waits == ()
    transfers.block(most_s=60.0)
    assert late.has_arrived
    late.wait()
    assert transfers.take_stall().ms == 0, "it was there"


@pytest.mark.usefixtures("_moved_clock")
def test_each_waiter_waits_for_itself() -> None:
    """As the streams of a GPU do: that one waits for a layer keeps no other from reading it too early."""
    lane = open_lane(CPU, EmulatedLink(torch.zeros(1, dtype=torch.int64), bytes_per_s=4000))
    transfers = Transfers(lane, 2)
    copies = transfers.open([LayerCopy(torch.zeros(200), torch.ones(200), [0, 100, 200])], LayerOrder())
    counts = []
    for waiter in (0, 0, 1, 1):
        lane.waiter = waiter  # type: ignore[misc]
        copies.wait_for_layers((0, 1))
        counts.append(len(transfers.take_stall().waits))
    assert counts == [1, 0, 1, 0]


@pytest.mark.usefixtures("_moved_clock")
def test_a_stall_is_told_though_its_transfer_is_over() -> None:
    link = EmulatedLink(torch.zeros(1, dtype=torch.int64), bytes_per_s=4000)
    transfers = Transfers(open_lane(CPU, link), 1)
    transfers.open([LayerCopy(torch.zeros(10), torch.ones(10))], LayerOrder()).wait()
    transfers.settle()
    assert transfers.are_over
    assert transfers.take_stall().ms > 0


def test_the_speed_is_that_of_the_link_there_is_now() -> None:
    """Which an experiment slows down in between."""
    lane = open_lane(CPU, EmulatedLink(torch.zeros(1, dtype=torch.int64), 1e9))
    transfers = Transfers(lane, 1)

    def carry() -> None:
        transfers.open([LayerCopy(torch.zeros(2**20), torch.ones(2**20))], LayerOrder()).wait()
        transfers.settle()

    assert transfers.bytes_per_ms is None
    carry()
    assert transfers.bytes_per_ms == pytest.approx(1e6, rel=0.01)
    lane.link = EmulatedLink(torch.zeros(1, dtype=torch.int64), 4e9)
    assert transfers.bytes_per_ms is None
    carry()
    carry()
    assert transfers.bytes_per_ms == pytest.approx(4e6, rel=0.01)


def test_a_very_slow_link_carries_large_pieces_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes longer than the link's clock counts in one go."""
    carried: list[float] = []
    monkeypatch.setattr(
        copy_lane, "pace", lambda clock, num_bytes, bytes_per_s: carried.append(num_bytes / bytes_per_s)
    )
    link = EmulatedLink(torch.zeros(1, dtype=torch.int64), 1e6)
    link.carry(5_500_000)
    assert sum(carried) == pytest.approx(5.5)
    assert max(carried) <= MAX_PIECE_NS / 1e9
    link.carry(0)
    assert carried[-1] == 0, "it still comes after what is on its way"
