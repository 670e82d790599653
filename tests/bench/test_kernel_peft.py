"""PEFT's LoRA layers as they are timed."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("peft")

from peft.tuners.lora.layer import Linear

from caraserve_cli.bench.kernel_cases import LoraCase, Phase, TimeLimits
from caraserve_cli.bench.peft_lora import time_peft_lora
from tests.bench.test_kernel_pool import BENCH


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
    case = LoraCase(
        name="decode",
        phase=Phase.DECODE,
        num_tokens=2,
        num_adapters=num_adapters,
        lora_ranks=(4,),
        limits=TimeLimits(None, None),
    )
    with torch.inference_mode():
        time_peft_lora(BENCH, case)
    assert set(mixed) == {is_mixed}
