"""Answers of one token whose adapters a GPU never loads, among others: the tokens are PEFT's."""

from __future__ import annotations

import pytest
import torch

from tests.fleet.test_parity import Oracle, answer, assert_same
from tests.fleet.test_partial_assist import oracle
from tests.fleet.test_spared_loads import Spare, requests_of
from tests.gpu.exact_products import exact_products

__all__ = ["exact_products", "oracle"]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.parametrize("lora_kernel", ["mbgmv", "bgmv"])
@pytest.mark.parametrize("chunk", [7, 512])
def test_tokens_are_pefts(
    oracle: Oracle, lora_kernel: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caraserve_cli.fleet.local.choose_policy", lambda name, break_even: Spare())
    requests = requests_of(oracle, 4)
    answers, steps = answer(
        oracle,
        requests,
        most_at_once=12,
        device="cuda",
        lora_kernel=lora_kernel,
        cold_start="cpu-assist",
        cpu_workers=2,
        prefill_chunk_tokens=chunk,
        kv_block_tokens=4,
        kv_memory="300KB",
        adapter_memory="900KB" if lora_kernel == "mbgmv" else "3MB",
        max_running=12,
        max_batch_tokens=128,
    )
    assert len(answers) == len(requests)
    assert_same(oracle, answers)
    assert sum(record.num_spared_loads for record in steps.records) > 10
