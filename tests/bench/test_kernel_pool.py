"""Random adapters in a pool, and their LoRA against float32, on CPU tensors; the mixes of the fit."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from caraserve_cli.adapters.packing import LoraForm, PaddedForm, UnpaddedForm
from caraserve_cli.bench.floor import DeviceSpeed
from caraserve_cli.bench.kernel_bench import KernelBench
from caraserve_cli.bench.kernel_timer import KernelTimer
from caraserve_cli.core import BaseShape
from caraserve_cli.fleet.kernel_batches import rank_mixes
from caraserve_cli.fleet.kernel_place import largest_error
from caraserve_cli.fleet.kernel_pool import PoolStep, RandomPool, even_segments
from caraserve_kernels import lora_pool

CPU = torch.device("cpu")
SHAPE = BaseShape(
    num_layers=2, hidden_size=32, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=48, vocab_size=9
)
BENCH = KernelBench(
    shape=SHAPE,
    modules=("q_proj", "v_proj", "down_proj"),
    device=CPU,
    dtype=torch.float32,
    speed=DeviceSpeed(bytes_per_s=2e6, flops_per_s=1e6),
    timer=KernelTimer(CPU, 1),
)


@pytest.mark.parametrize("form", [UnpaddedForm(), PaddedForm(6)], ids=["mbgmv", "bgmv"])
def test_a_step_on_a_filled_pool_is_right(form: LoraForm) -> None:
    pool = RandomPool(BENCH, SHAPE, form, [6, 6, 6])
    step = PoolStep(BENCH, pool, max_tokens=8, decoding=True)
    for adapter_ranks in ([6, 6, 6], [2, 5, 3]):
        pool.fill(adapter_ranks)
        context = step.write(even_segments(6, 3))
        assert step.error(context, 6) < 1e-5
        launches = step.launches(context, 6)
        assert launches.error(launches) == 0


def test_every_adapter_has_its_own_content_and_padding_is_zero() -> None:
    # 8 rows of any width here end where the next piece begins.
    pool = RandomPool(BENCH, SHAPE, PaddedForm(8), [2, 2])
    pool.fill([2, 2])
    first, second = pool.packed.weights.view(2, -1)
    assert not torch.equal(first, second)
    # Two rows of the eight that there is room for.
    assert int(first.count_nonzero()) == 2 * SHAPE.num_layers * sum(
        sum(SHAPE.module_shape(module)) for module in BENCH.modules
    )


def test_a_wrong_kernel_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = RandomPool(BENCH, SHAPE, UnpaddedForm(), [4])
    pool.fill([4])
    step = PoolStep(BENCH, pool, max_tokens=2, decoding=True)
    context = step.write(even_segments(2, 1))
    monkeypatch.setattr(lora_pool.PooledLora, "add", lambda *_: None)
    error = step.error(context, 2)
    assert error == pytest.approx(1)
    assert (
        BENCH.wrong(error) == "differs from its float32 reference by 1.0e+00 of the largest value, not 0.001"
    )


def test_a_replay_of_fewer_layers_is_seen() -> None:
    pool = RandomPool(BENCH, SHAPE, UnpaddedForm(), [4])
    pool.fill([4])
    step = PoolStep(BENCH, pool, max_tokens=2, decoding=True)
    launches = step.launches(step.write(even_segments(2, 1)), 2)
    first_layer = dataclasses.replace(launches, num_layers=1)
    assert BENCH.wrong(launches.error(first_layer)) is not None
    assert BENCH.wrong(launches.error(lambda: None)) is not None


def test_errors() -> None:
    expected = torch.tensor([1.0, -4.0])
    assert largest_error(torch.tensor([1.5, -4.0]), expected) == 0.125
    assert largest_error(torch.tensor([1.5, -4.0]), expected, torch.tensor([0.5])) == 1
    assert largest_error(torch.tensor([math.nan, -4.0]), expected) == math.inf
    assert BENCH.wrong(math.inf) is not None
    assert BENCH.wrong(1e-4) is None


def test_the_floor_is_what_takes_longer() -> None:
    assert BENCH.floor_us(num_bytes=2, flops=3) == pytest.approx(3)
    assert BENCH.floor_us(num_bytes=8, flops=3) == pytest.approx(4)


def test_mixes_of_ranks() -> None:
    assert rank_mixes(16, (8, 16, 32), 4) == {
        "all equal": (16, 16, 16, 16),
        "one largest": (16, 8, 8, 8),
        "cycle": (16, 8, 16, 8),
    }
    assert rank_mixes(8, (8, 16, 32), 3) == {"all equal": (8, 8, 8)}


def test_tokens_are_spread_evenly() -> None:
    assert even_segments(6, 3).tolist() == [[0, 0, 2], [1, 2, 2], [2, 4, 2]]
