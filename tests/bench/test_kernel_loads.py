"""An adapter's way into the pool, on the CPU: whose copies are timed, and that they bring all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.adapters.transfer import LayerCopy, Transfer
from caraserve_cli.adapters.transfers import Transfers
from caraserve_cli.bench.kernel_cases import LoadCase
from caraserve_cli.bench.kernel_loads import measure_loads
from tests.bench.test_kernel_pool import BENCH, SHAPE

Told = Callable[[], None]

CASE = LoadCase(lora_rank=4, layer_at_most=None)
NOT_THERE = "is not on the device what it is in host memory"


def test_the_whole_adapter_and_every_layer_go_by_transfers(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[list[int]] = []
    open_transfer = Transfers.open

    def note(transfers: Transfers, copies: Sequence[LayerCopy], order: LayerOrder, *told: Told) -> Transfer:
        opened.append([copy.source.nbytes for copy in copies])
        return open_transfer(transfers, copies, order, *told)

    monkeypatch.setattr(Transfers, "open", note)
    result = measure_loads(BENCH, CASE)
    assert result.wrong is None
    (table, blob), *layers = opened[: 1 + SHAPE.num_layers]
    assert 0 < table != result.adapter_bytes
    assert blob == result.adapter_bytes == sum(layer[0] for layer in layers)


def test_a_layer_that_is_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerOrder, "groups", lambda order, num_layers: ((0, 1),))
    assert measure_loads(BENCH, CASE).wrong == NOT_THERE


def test_a_table_that_is_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    open_transfer = Transfers.open

    def open_weights(
        transfers: Transfers, copies: Sequence[LayerCopy], order: LayerOrder, *told: Told
    ) -> Transfer:
        weights = [copy for copy in copies if copy.target.is_floating_point()]
        return open_transfer(transfers, weights, order, *told)

    monkeypatch.setattr(Transfers, "open", open_weights)
    assert measure_loads(BENCH, CASE).wrong == NOT_THERE
