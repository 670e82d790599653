"""What adapters add to steps, as `caraserve profile` measures it: on CPU tensors, by the engine's parts."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from caraserve_cli.core import BaseShape
from caraserve_cli.errors import ProfileError
from caraserve_cli.fleet import profile_kernels
from caraserve_cli.fleet.kernel_place import KernelPlace
from caraserve_cli.fleet.profile_kernels import (
    MODULES,
    cpu_step,
    measure_on_cpu,
    measure_on_gpu,
    random_adapter,
)
from caraserve_cli.fleet.profiling import _fit_kernels
from caraserve_cli.perf.lora_kernels import KernelTimes
from caraserve_kernels.lora_pool import PooledLora

SHAPE = BaseShape(
    num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48, vocab_size=9
)
PLACE = KernelPlace(SHAPE, MODULES, torch.device("cpu"), torch.float32)
ROOMY = 2**40


@pytest.fixture(autouse=True)
def few_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile_kernels, "_LORA_RANKS", (2, 4))
    monkeypatch.setattr(profile_kernels, "_GPU_BATCH_SIZES", (1, 3))
    monkeypatch.setattr(profile_kernels, "_CPU_BATCH_SIZES", (1, 3))
    monkeypatch.setattr(profile_kernels, "_REPEATS", 1)


def test_a_gpu_has_times_of_both_kernels_for_the_same_batches() -> None:
    padded, unpadded = measure_on_gpu(PLACE, ROOMY)
    assert (padded.is_padded, unpadded.is_padded) == (True, False)
    # Of both ranks all equal; of the larger one also with one of it, and with both in turn.
    expected = {(2,), (2, 2, 2), (4,), (4, 4, 4), (4, 2, 2), (4, 2, 4)}
    assert padded.batches == unpadded.batches
    assert set(padded.batches) == expected
    assert min(*padded.times_ms, *unpadded.times_ms) > 0


def test_layers_that_do_not_fit_are_told_from_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the device is for the pools; each has three adapters of rank 4."""
    layer_bytes = 2 * 3 * 4 * sum(sum(SHAPE.module_shape(module)) for module in MODULES) * 4
    computed: set[int] = set()
    right = PooledLora.add

    def add(lora: PooledLora, layer: int, group: int, x: Tensor, y: Tensor) -> None:
        computed.add(layer)
        right(lora, layer, group, x, y)

    monkeypatch.setattr(PooledLora, "add", add)
    measure_on_gpu(PLACE, 4 * layer_bytes)
    assert computed == {0}
    measure_on_gpu(PLACE, 8 * layer_bytes)
    assert computed == {0, 1}
    with pytest.raises(ProfileError, match="must be free"):
        measure_on_gpu(PLACE, 3 * layer_bytes)


def test_a_kernel_that_computes_something_else_has_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PooledLora, "add", lambda *_: None)
    with pytest.raises(ProfileError, match="differs from its float32 reference"):
        measure_on_gpu(PLACE, ROOMY)


def test_a_cpu_has_times_of_what_its_runner_computes() -> None:
    times = measure_on_cpu(PLACE)
    assert not times.is_padded
    assert len(times.batches) == len(times.times_ms) == 8
    assert min(times.times_ms) > 0


def test_a_step_on_a_cpu_computes_each_token_with_its_adapter() -> None:
    adapters = [random_adapter(PLACE, lora_rank) for lora_rank in (2, 4, 3)]
    step = cpu_step(PLACE, adapters)
    before = [each.y.clone() for each in step.projections]
    step()
    for each, y in zip(step.projections, before, strict=True):
        column = 0
        for module in each.modules:
            width = SHAPE.module_shape(module)[1]
            expected = y[:, column : column + width].clone()
            for token, adapter_slot in enumerate(step.adapter_slots):
                for layer in range(SHAPE.num_layers):
                    pair = adapters[adapter_slot].pairs[layer, module]
                    expected[token] += each.x[token] @ pair.a.T @ pair.b_rows
            torch.testing.assert_close(each.y[:, column : column + width], expected)
            column += width


def test_what_follows_no_line_is_left_out_by_name() -> None:
    batches = tuple((lora_rank,) * size for lora_rank in (8, 64) for size in (4, 8, 16))
    line = KernelTimes(True, batches, tuple(0.1 + 0.01 * len(b) * max(b) for b in batches))
    noise = KernelTimes(False, batches, (5.0, 1.0, 4.0, 2.0, 6.0, 1.0))
    told: list[str] = []
    kernels = _fit_kernels([line, noise], told.append)
    assert list(kernels) == [True]
    assert kernels[True].alpha_ms == pytest.approx(0.01)
    assert kernels[True].quality.r2 == pytest.approx(1)
    assert len(told) == 1
    assert "unpadded LoRA kernel" in told[0]
    assert "at least 0.96 is needed" in told[0]
    assert "ranks count in predictions only as" in told[0]
    assert "or the base is so small that ranks hardly cost it anything" in told[0]


def test_times_that_ascend_with_the_sum_of_ranks_are_a_line() -> None:
    batches = ((8,), (8, 64), (64, 64), (8, 8, 8, 8))
    times_ms = [0.2 + 0.002 * sum(batch) for batch in batches]
    kernels = _fit_kernels([KernelTimes(False, batches, tuple(times_ms))], pytest.fail)
    predicted = [kernels[False].batch_ms(batch) for batch in sorted(batches, key=sum)]
    assert all(low < high for low, high in pairwise(predicted))
