"""Round trips of ops: known costs, the table of hardware.md, and how many tokens a worker takes."""

from __future__ import annotations

import random

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.cpu_lora import CpuLoraModel, CpuLoraOp
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.op_cut import OpCut
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


def own_widths(op: CpuLoraOp) -> tuple[int, ...]:
    """Of the modules of the worker with most work; the widths are at most three, falling."""
    num_modules = len(op.out_widths)
    if op.num_workers >= num_modules:
        return op.out_widths[:1]
    return op.out_widths if op.num_workers == 1 else op.out_widths[1:]


def true_ms(op: CpuLoraOp) -> float:
    worker_tokens = -(-op.num_tokens // max(1, op.num_workers // len(op.out_widths)))
    widths = own_widths(op)
    weights = op.lora_rank * (512 * len(widths) + sum(widths))
    fixed_ms = 0.02 + 0.01 * len(widths) + 0.001 * (op.num_workers - 1)
    return fixed_ms + 1e-8 * worker_tokens * weights + 4e-7 * weights


def test_a_known_cost_is_found_again() -> None:
    model = CpuLoraModel.fit(grid(), [true_ms(op) for op in grid()])
    unseen = CpuLoraOp(50, 512, (512, 256), 16, 5)
    assert model.predict_ms(unseen) == pytest.approx(true_ms(unseen))
    assert model.quality.r2 == pytest.approx(1)


@pytest.mark.parametrize("num_workers", [1, 6, 14])
def test_known_round_trips_of_a_profile_are_found_again(num_workers: int) -> None:
    """The sizes that a profile measures, with noise of a tenth; ops over two orders of magnitude."""
    chosen, c = random.Random(5), 16
    true = CpuLoraModel(0.06, 0, 4e-9, 5e-8, 1e-7, 0.001, 3e-8, 0.02, FitQuality(1, 0, 9))
    ops = [
        CpuLoraOp(tokens, 4096, out_widths, lora_rank, cut.num_shares, c, sum(out_widths))
        for out_widths in (QKV, (4096,))
        for lora_rank in (8, 32, 64, 128)
        for tokens in (1, 8, 16, 32, 64, 128, 256)
        for cut in (OpCut.of(tokens, len(out_widths), num_workers, c, lora_rank),)
    ]
    times_ms = [true.predict_ms(op) * chosen.uniform(0.9, 1.1) for op in ops]
    model = CpuLoraModel.fit(ops, times_ms)
    assert model.quality.r2 > 0.95
    for op in ops:
        assert model.predict_ms(op) == pytest.approx(true.predict_ms(op), rel=0.1)


def test_what_is_the_same_for_all_modules_is_the_ops() -> None:
    """With a worker for each module nothing tells a module's cost from an op's."""
    ops = [
        CpuLoraOp(tokens, 512, (512,) * 3, lora_rank, 3)
        for tokens in (8, 32, 128)
        for lora_rank in (8, 64, 99)
    ]
    model = CpuLoraModel.fit(ops, [0.5 + 1e-8 * op.terms[2] for op in ops])
    assert model.op_ms == pytest.approx(0.5)
    assert model.module_ms == 0


def test_rows_go_there_and_all_columns_come_back() -> None:
    """By hand: 32 tokens of 64 elements there; of 96 back, if an adapter changes q alone too."""
    gqa = CpuLoraOp(32, 64, (64, 16, 16), 4, 1)
    assert gqa.exchanged_elements == 32 * (64 + 96)
    assert gqa._replace(num_workers=7, tokens_per_worker=1).exchanged_elements == 32 * (64 + 96)
    assert CpuLoraOp(32, 64, (64,), 4, 1, group_out_width=96).exchanged_elements == 32 * (64 + 96)


def test_workers_meet_where_they_share_a_module() -> None:
    op = CpuLoraOp(32, 64, (64, 16, 16), 32, 6, 32)
    assert op.has_meeting
    assert not op._replace(num_workers=3).has_meeting
    assert not op._replace(lora_rank=8).has_meeting


def test_the_table_of_hardware_md() -> None:
    """Threads there share all products, and a model of workers still explains it."""
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
    """3/8 ms for any worker, 1/64 ms a token: a second one saves what it costs from 24 tokens each. What the
    op and its rows cost does not count."""
    quality = FitQuality(1, 0, 9)
    model = CpuLoraModel(5, 0.25, 2**-20, 0, 0, 0.125, 1, 0, quality)
    assert model.tokens_per_worker(1024, 1024, 8) == 24
    without = CpuLoraModel(0.3, 0, 0, 0, 0, 0, 0, 0, quality)
    assert without.tokens_per_worker(1024, 1024, 8) > 1024


def test_workers_that_cost_nothing_take_a_token_each() -> None:
    model = CpuLoraModel(0, 0, 1e-6, 0, 0, 0, 0, 0, FitQuality(1, 0, 9))
    assert model.tokens_per_worker(1024, 1024, 8) == 1


def test_the_worker_with_most_work_decides() -> None:
    """By hand: modules of it, multiplications, weights and elements."""
    gqa = CpuLoraOp(32, 64, (64, 16, 16), 4, 1)
    assert gqa.terms == (1, 3, 32 * 1152, 1152, 32 * 160, 0)
    # q alone is less than k and v together.
    assert gqa._replace(num_workers=2).terms == (1, 2, 32 * 640, 640, 32 * 96, 1)
    assert gqa._replace(num_workers=3).terms == (1, 1, 32 * 512, 512, 32 * 128, 2)
    # Four workers cut no module; seven cut all of them in two.
    assert gqa._replace(num_workers=4).terms == (1, 1, 32 * 512, 512, 32 * 128, 3)
    assert gqa._replace(num_workers=7).terms == (1, 1, 16 * 512, 512, 16 * 128, 6)
    # More workers than tokens.
    assert CpuLoraOp(2, 64, (64,), 4, 9).terms == (1, 1, 512, 512, 128, 8)


def test_workers_of_one_module_share_its_weights_and_columns_and_all_read_x() -> None:
    """By hand, as `test_the_worker_with_most_work_decides`; 32 tokens are no reason to cut rows."""
    gqa = CpuLoraOp(32, 64, (64, 16, 16), 32, 6, 32)
    assert gqa.terms == (1, 1, 32 * 2048, 2048, 32 * 96, 5)
    assert gqa._replace(num_workers=12).terms == (1, 1, 32 * 1024, 1024, 32 * 80, 11)
    assert gqa._replace(lora_rank=8).terms == (1, 1, 32 * 1024, 1024, 32 * 128, 5)


def test_what_follows_no_model_is_refused() -> None:
    times_ms = [1.0 if index % 2 else 20.0 for index in range(len(grid()))]
    with pytest.raises(ProfileError, match="LoRA on the CPU"):
        CpuLoraModel.fit(grid(), times_ms)
