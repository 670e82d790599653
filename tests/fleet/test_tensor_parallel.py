"""Two processes that hold a base together, each with a part of every adapter: real ones, with gloo between them.

Token for token what transformers + PEFT generate, over five families × every adapter variant, with a cache and an
adapter pool that are too small.
"""

from __future__ import annotations

import pytest

from tests.fleet.test_parity import Oracle, answer, assert_same, oracle

__all__ = ["oracle"]


def test_tokens_are_pefts(oracle: Oracle) -> None:
    answers, steps = answer(
        oracle,
        oracle.requests,
        tensor_parallel=2,
        prefill_chunk_tokens=7,
        kv_block_tokens=4,
        # Half of what one process has in `test_parity`: half of the heads, and half of most rank rows.
        kv_memory="100KB",
        adapter_memory="150KB",
    )
    assert len(answers) == len(oracle.requests)
    assert_same(oracle, answers)
    assert sum(record.num_preempted for record in steps.records) > 0, "the cache was meant to be too small"
    assert sum(record.num_adapter_loads for record in steps.records) > 25, "and so was the adapter pool"
    assert sum(record.num_cached_tokens for record in steps.records) > 0


@pytest.mark.parametrize("lora_kernel", ["mbgmv", "bgmv"])
@pytest.mark.parametrize("oracle", ["qwen2"], indirect=True)
def test_the_gpu_way_on_cpu_tensors(
    oracle: Oracle, lora_kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The GPU's runner, pool and work lists, a step ahead of its tokens, in both processes."""
    monkeypatch.setattr("caraserve_cli.fleet.surroundings.copies_adapters", lambda device: True)
    answers, steps = answer(
        oracle,
        oracle.requests,
        tensor_parallel=2,
        lora_kernel=lora_kernel,
        prefill_chunk_tokens=7,
        kv_block_tokens=4,
        kv_memory="100KB",
        adapter_memory="350KB" if lora_kernel == "mbgmv" else "1500KB",
        max_running=32,
        max_batch_tokens=256,
    )
    assert len(answers) == len(oracle.requests)
    assert_same(oracle, answers)
    assert sum(record.num_preempted for record in steps.records) > 0
    assert sum(record.num_adapter_loads for record in steps.records) > 25
