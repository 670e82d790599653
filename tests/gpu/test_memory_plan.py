"""What is planned for steps beside the others holds what they take."""

from __future__ import annotations

import gc

import pytest
import torch

from caraserve_cli.engine.gpu_runner import GpuRunner
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_graphs_and_buffers_beside_the_others_are_in_the_plan() -> None:
    options = ReplicaOptions(
        base="llama2-7b",
        weights="random",
        device="cuda",
        cold_start="cpu-assist",
        cpu_workers=2,
        gpu_memory="40GB",
        adapter_memory="1GB",
    )
    surroundings = Surroundings.prepare(options)
    replica = LocalReplica(surroundings, options, lambda: 0.0, NoEvents())
    runner = replica._runner
    assert isinstance(runner, GpuRunner)
    used_groups = frozenset({0, 1})  # q, k, v and o
    runner.warm_up(used_groups)
    before_bytes = _free_bytes()
    runner.warm_up(used_groups, beside=True)
    taken_bytes = before_bytes - _free_bytes()
    replica.close()
    surroundings.host_store.close()
    assert 0 < taken_bytes <= surroundings.memory.beside_bytes


def _free_bytes() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]
