"""PEFT's LoRA layers as they are timed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from itertools import accumulate, chain

import pytest
import torch

pytest.importorskip("peft")

from peft.tuners.lora.layer import Linear

from caraserve_cli.bench.kernel_cases import LoraCase, Phase, TimeLimits
from caraserve_cli.bench.kernel_peers import NotToldApartError, measure_peer
from caraserve_cli.bench.kernel_result import PeerTime
from caraserve_cli.bench.kernel_timer import KernelTimer
from caraserve_cli.bench.peft_lora import time_peft_lora
from tests.bench.test_kernel_pool import BENCH, CPU


def decode(num_adapters: int) -> LoraCase:
    return LoraCase(
        name="decode",
        phase=Phase.DECODE,
        num_tokens=2,
        num_adapters=num_adapters,
        lora_ranks=(4,),
        limits=TimeLimits(None, None),
    )


@pytest.mark.parametrize(("num_adapters", "is_mixed"), [(1, False), (2, True)])
def test_names_of_adapters_are_given_where_there_are_several(
    monkeypatch: pytest.MonkeyPatch, num_adapters: int, is_mixed: bool
) -> None:
    mixed: list[bool] = []
    forward = Linear.forward

    def note(layer: Linear, x: torch.Tensor, **options: object) -> torch.Tensor:
        mixed.append("adapter_names" in options)
        y: torch.Tensor = forward(layer, x, **options)
        assert not torch.equal(y, layer.get_base_layer()(x)), "no adapter is active"
        return y

    monkeypatch.setattr(Linear, "forward", note)
    case = decode(num_adapters)
    with torch.inference_mode(), suppress(NotToldApartError):
        time_peft_lora(BENCH, case)
    assert set(mixed) == {is_mixed}


def timed(*runs_us: tuple[float, float]) -> PeerTime:
    """PEFT's time where one of the two layers takes so long with adapters, and without, in each repeat."""
    ends = accumulate(
        chain.from_iterable((0.0, each_us) for run in ((0.0, 0.0), *runs_us) for each_us in run)
    )
    clock_s = iter([end_us / 1e6 for end_us in ends])
    bench = replace(BENCH, timer=KernelTimer(CPU, len(runs_us), clock=lambda: next(clock_s)))
    with torch.inference_mode():
        return measure_peer("PEFT", lambda: time_peft_lora(bench, decode(2)))


def test_a_difference_is_a_time_only_where_it_is_larger_than_its_spread() -> None:
    told = timed((30, 10), (32, 10), (31, 10))
    assert told.time_us is not None
    assert told.time_us.values == pytest.approx((40, 44, 42))
    assert told.problem is None
    negative = timed((11, 10), (9, 10), (12, 10))
    assert negative.time_us is None
    assert negative.problem == "not told apart from noise: -2.0 to 4.0 µs in 3 repeats"
    wide = timed((30, 10), (12, 10))
    assert (wide.time_us, wide.problem) == (None, "not told apart from noise: 4.0 to 40.0 µs in 2 repeats")
