"""What is checked before a line is drawn through times."""

from __future__ import annotations

import pytest
from torch import Tensor

from caraserve_cli.bench.kernel_cases import FitCase
from caraserve_cli.bench.kernel_fit import measure_fit
from caraserve_kernels.lora_pool import PooledLora
from tests.bench.test_kernel_pool import BENCH

CASE = FitCase(batch_sizes=(1, 3), largest_ranks=(2, 4), num_layers=1, r2_at_least=None)


def test_repeats_are_those_of_each_point() -> None:
    result = measure_fit(BENCH, CASE, 3)
    assert (result.repeats, result.wrong) == (1, None)


@pytest.mark.parametrize("batch_size", CASE.batch_sizes)
def test_a_wrong_kernel_of_one_batch_size_is_seen(monkeypatch: pytest.MonkeyPatch, batch_size: int) -> None:
    right = PooledLora.add

    def add(lora: PooledLora, layer: int, group: int, x: Tensor, y: Tensor) -> None:
        if x.shape[0] != batch_size:
            right(lora, layer, group, x, y)

    monkeypatch.setattr(PooledLora, "add", add)
    wrong = measure_fit(BENCH, CASE, 3).wrong
    assert wrong is not None
    assert wrong.startswith("differs from its float32 reference")
