"""Two GPUs that hold a base together give PEFT's tokens, and the sample's answers.

Needs two accelerators; CI has none, so that these are skipped there and run by hand on the GPU machine.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from caraserve_cli.errors import LostProcessError
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from tests.cli.command import SAMPLE, rows_by_id, run_caraserve
from tests.fleet.test_parity import Oracle, answer, assert_same, oracle
from tests.gpu.exact_products import exact_products

__all__ = ["exact_products", "oracle"]

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


@pytest.mark.parametrize(("lora_kernel", "adapter_memory"), [("mbgmv", "250KB"), ("bgmv", "1MB")])
def test_tokens_are_pefts(oracle: Oracle, lora_kernel: str, adapter_memory: str) -> None:
    answers, steps = answer(
        oracle,
        oracle.requests,
        device="cuda",
        tensor_parallel=2,
        lora_kernel=lora_kernel,
        prefill_chunk_tokens=7,
        kv_block_tokens=4,
        kv_memory="100KB",
        adapter_memory=adapter_memory,
    )
    assert len(answers) == len(oracle.requests)
    assert_same(oracle, answers)
    assert sum(record.num_preempted for record in steps.records) > 0


def test_a_process_that_is_killed_ends_the_replica(oracle: Oracle) -> None:
    """What waits for it in a collective on the other GPU is broken off."""
    options = ReplicaOptions(
        base=str(oracle.base),
        adapter_roots=(oracle.adapters,),
        dtype="float32",
        device="cuda",
        tensor_parallel=2,
    )
    surroundings = Surroundings.prepare(options)
    replica = LocalReplica(surroundings, options, lambda: 0.0, NoEvents())
    replica.submit(oracle.requests)
    for _ in range(3):
        replica.poll()
    assert replica._followers is not None
    os.kill(replica._followers.pids[0], signal.SIGKILL)
    with pytest.raises(LostProcessError, match=r"was killed \(SIGKILL\)"):
        _poll_to_the_end(replica)
    replica.close()
    surroundings.host_store.close()


def _poll_to_the_end(replica: LocalReplica) -> None:
    while replica.num_unfinished:
        replica.poll()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sample(tmp_path: Path, dtype: str) -> None:
    out = tmp_path / "out"
    ended = run_caraserve("run", "--device", "cuda", "--tensor-parallel", "2", "--dtype", dtype, "--out", out)
    assert ended.returncode == 0, ended.stderr
    rows = rows_by_id(out / "outputs.jsonl")
    assert len(rows) == (SAMPLE / "requests.jsonl").read_bytes().count(b"\n")
    assert [name for name, row in rows.items() if row["text"] != row["metadata"]["expected"]] == []
