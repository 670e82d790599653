"""The same answers on a GPU as PEFT gives on the CPU, and the sample's in bfloat16.

Needs an accelerator; CI has none, so that these are skipped there and run by hand on the GPU machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sample(tmp_path: Path, dtype: str) -> None:
    ended = run_caraserve("run", "--device", "cuda", "--dtype", dtype, "--out", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    rows = rows_by_id(tmp_path / "out" / "outputs.jsonl")
    assert len(rows) == (SAMPLE / "requests.jsonl").read_bytes().count(b"\n")
    assert [name for name, row in rows.items() if row["text"] != row["metadata"]["expected"]] == []
