"""The same answers on a GPU as PEFT gives on the CPU, and the sample's in bfloat16.

Needs an accelerator; CI has none, so that these are skipped there and run by hand on the GPU machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from caraserve_cli.core import SamplingParams
from tests.cli.command import SAMPLE, rows_by_id, run_caraserve
from tests.fleet.test_parity import Oracle, answer, assert_same, oracle

__all__ = ["oracle"]

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """TensorFloat-32 would not be float32."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(("lora_kernel", "adapter_memory"), [("mbgmv", "250KB"), ("bgmv", "1MB")])
def test_tokens_are_pefts(oracle: Oracle, lora_kernel: str, adapter_memory: str) -> None:
    answers, steps = answer(
        oracle,
        oracle.requests,
        device="cuda",
        lora_kernel=lora_kernel,
        prefill_chunk_tokens=7,
        kv_block_tokens=4,
        kv_memory="200KB",
        adapter_memory=adapter_memory,
    )
    assert len(answers) == len(oracle.requests)
    assert_same(oracle, answers)
    assert sum(record.num_preempted for record in steps.records) > 0


def test_large_batches_are_pefts(oracle: Oracle) -> None:
    """All requests at once, whole prompts, adapters that several share: other kernels than above."""
    answers, steps = answer(oracle, oracle.requests, device="cuda", adapter_memory="1GB")
    assert_same(oracle, answers)
    assert max(record.num_decode_tokens for record in steps.records) > 128


def test_draws_do_not_depend_on_the_batch(oracle: Oracle) -> None:
    sampling = SamplingParams(max_tokens=12, temperature=0.8, top_p=0.9, ignore_eos=True)
    requests = [
        dataclasses.replace(request, sampling=dataclasses.replace(sampling, seed=request.line))
        for request in oracle.requests
    ]
    large, small = (
        {name: tuple(each.token_ids) for name, each in answers.items()}
        for answers, _ in (
            answer(oracle, requests, device="cuda", adapter_memory="1GB"),
            answer(oracle, requests, device="cuda", adapter_memory="1GB", max_running=12),
        )
    )
    assert large == small
    greedy = {name: tuple(tokens) for name, tokens in oracle.answers.items()}
    assert sum(large[name][:4] != greedy[name][:4] for name in large) > len(large) // 2, "nothing was drawn"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sample(tmp_path: Path, dtype: str) -> None:
    ended = run_caraserve("run", "--device", "cuda", "--dtype", dtype, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    rows = rows_by_id(tmp_path / "out" / "outputs.jsonl")
    assert len(rows) == (SAMPLE / "requests.jsonl").read_bytes().count(b"\n")
    assert [name for name, row in rows.items() if row["text"] != row["metadata"]["expected"]] == []
