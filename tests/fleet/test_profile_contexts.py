"""What contexts take is counted once: in their own cost, and not in the decoding steps' base time."""

from __future__ import annotations

import pytest

from caraserve_cli.fleet.profiling import _fit_decode, _fit_kv_cost
from caraserve_cli.perf.kv_cost import ContextStep, KvCost
from caraserve_cli.perf.least_squares import FitQuality


def test_short_contexts_are_taken_out_of_the_base_time() -> None:
    def time_ms(step: ContextStep) -> float:
        return 20 + 0.1 * step.batch_size + 0.001 * step.kv_tokens

    contexts = [ContextStep(size, size * length) for size in (8, 32) for length in (128, 512, 1536)]
    told: list[str] = []
    kv_cost = _fit_kv_cost({step: time_ms(step) for step in contexts}, told.append)
    assert kv_cost is not None
    assert kv_cost.token_ms == pytest.approx(0.001)
    short = [ContextStep(size, 29 * size) for size in (1, 8, 32)]
    decode, same = _fit_decode({step: time_ms(step) for step in short}, kv_cost, told.append)
    assert same is kv_cost
    assert decode.step_ms(8) == pytest.approx(20.8)
    assert not told


def test_contexts_that_cannot_be_told_apart_are_left_out_by_name() -> None:
    told: list[str] = []
    assert _fit_kv_cost({ContextStep(8, 1024): 20.0}, told.append) is None
    assert "no batch size was measured with two" in told[0]
    decode, _ = _fit_decode({ContextStep(8, 232): 21.0}, None, told.append)
    assert decode.step_ms(8) == pytest.approx(21)


def test_contexts_that_seem_to_take_all_of_a_step_are_not_believed() -> None:
    """No base time of zero or less is ever fitted."""
    kv_cost = KvCost(0.02, FitQuality(1, 0, 6))
    told: list[str] = []
    short = {ContextStep(1, 16): 3.0, ContextStep(8, 150): 3.0, ContextStep(32, 600): 3.5}
    decode, believed = _fit_decode(short, kv_cost, told.append)
    assert believed is None
    assert [decode.step_ms(step.batch_size) for step in short] == list(short.values())
    assert "longer than whole steps" in told[0]
