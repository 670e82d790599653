"""LoRA on the CPU: a known cost, the table of hardware.md, and how many tokens a worker takes."""

from __future__ import annotations

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.cpu_lora import CpuLoraModel, CpuLoraOp
from caraserve_cli.perf.least_squares import FitQuality
from tests.perf.h200 import cpu_points

QKV = (4096, 4096, 4096)


def grid() -> list[CpuLoraOp]:
    return [
        CpuLoraOp(tokens, 512, out_widths, lora_rank, workers)
        for tokens in (8, 32, 128)
        for out_widths in ((512,), (512, 256, 256))
        for lora_rank in (8, 64)
        for workers in (1, 2, 4)
    ]


def true_ms(op: CpuLoraOp) -> float:
    worker_tokens = -(-op.num_tokens // op.num_workers)
    weights = op.lora_rank * (512 * len(op.out_widths) + sum(op.out_widths))
    fixed_ms = 0.02 + 0.01 * len(op.out_widths) + 0.001 * (op.num_workers - 1)
    return fixed_ms + 1e-8 * worker_tokens * weights + 4e-7 * weights


def test_a_known_cost_is_found_again() -> None:
    model = CpuLoraModel.fit(grid(), [true_ms(op) for op in grid()])
    unseen = CpuLoraOp(50, 512, (512, 256), 16, 3)
    assert model.predict_ms(unseen) == pytest.approx(true_ms(unseen))
    assert model.quality.r2 == pytest.approx(1)


def test_the_table_of_hardware_md() -> None:
    """Threads there share one product, and a model of workers still explains it."""
    ops, times_ms = cpu_points()
    model = CpuLoraModel.fit(ops, times_ms)
    assert model.quality.r2 > 0.9
    single = CpuLoraOp(128, 4096, QKV, 64, 1)
    assert model.predict_ms(single) == pytest.approx(1.2, rel=0.25)


def test_more_work_never_takes_less() -> None:
    model = CpuLoraModel.fit(*cpu_points())
    op = CpuLoraOp(64, 4096, QKV, 32, 2)
    for more in (op._replace(num_tokens=65), op._replace(lora_rank=33), op._replace(in_width=4097)):
        assert model.predict_ms(more) >= model.predict_ms(op)


def test_a_further_worker_saves_what_it_costs_from_c_tokens_on() -> None:
    """3/8 ms for any worker, 1/64 ms a token: a second one saves what it costs from 24 tokens each."""
    quality = FitQuality(1, 0, 9)
    model = CpuLoraModel(0.125, 0.25, 2**-20, 0, 0, 0, quality)
    assert model.tokens_per_worker(1024, (1024,), 8) == 24
    without = CpuLoraModel(0.3, 0, 0, 0, 0, 0, quality)
    assert without.tokens_per_worker(1024, (1024,), 8) > 1024


def test_workers_that_cost_nothing_take_a_token_each() -> None:
    model = CpuLoraModel(0, 0, 1e-6, 0, 0, 0, FitQuality(1, 0, 9))
    assert model.tokens_per_worker(1024, (1024,), 8) == 1


def test_what_follows_no_model_is_refused() -> None:
    times_ms = [1.0 if index % 2 else 20.0 for index in range(len(grid()))]
    with pytest.raises(ProfileError, match="LoRA on the CPU"):
        CpuLoraModel.fit(grid(), times_ms)
