"""An adapter's way into the pool, on the CPU: whose copies are timed, and that they bring all of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch import Tensor

from caraserve_cli.adapters.layer_copies import LayerCopies
from caraserve_cli.bench.kernel_cases import LoadCase
from caraserve_cli.bench.kernel_loads import measure_loads
from tests.bench.test_kernel_pool import BENCH, SHAPE

CASE = LoadCase(lora_rank=4, layer_at_most=None)
NOT_THERE = "is not on the device what it is in host memory"


def test_the_whole_adapter_and_every_layer_go_by_layer_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    queued: list[int] = []
    queue = LayerCopies.queue

    def note(copies: LayerCopies, target: Tensor, source: Tensor, layer_starts: Sequence[int]) -> None:
        queued.append(source.nbytes)
        queue(copies, target, source, layer_starts)

    monkeypatch.setattr(LayerCopies, "queue", note)
    result = measure_loads(BENCH, CASE)
    assert result.wrong is None
    table, *blobs = queued[: 2 + SHAPE.num_layers]
    assert 0 < table != result.adapter_bytes
    assert blobs[0] == result.adapter_bytes == sum(blobs[1:])


def test_a_layer_that_is_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    copy_layers = LayerCopies._copy_layers

    def only_the_first(copies: LayerCopies, first_layer: int, end_layer: int) -> None:
        if not first_layer:
            copy_layers(copies, first_layer, end_layer)

    monkeypatch.setattr(LayerCopies, "_copy_layers", only_the_first)
    assert measure_loads(BENCH, CASE).wrong == NOT_THERE


def test_a_table_that_is_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = LayerCopies.queue

    def queue_weights(
        copies: LayerCopies, target: Tensor, source: Tensor, layer_starts: Sequence[int]
    ) -> None:
        if target.is_floating_point():
            queue(copies, target, source, layer_starts)

    monkeypatch.setattr(LayerCopies, "queue", queue_weights)
    assert measure_loads(BENCH, CASE).wrong == NOT_THERE
