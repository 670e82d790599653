"""What a change of adapters costs the GPU's driver: nothing. Counted from a profile of the CUDA calls."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from caraserve_cli.core import Request, SamplingParams
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import Surroundings
from tests.adapters.peft_variants import write_variants
from tests.fleet.families import write_base

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

NUM_STEPS = 24
# Graph captures, allocations, and waits for the device. Waiting for a step's tokens is cudaEventSynchronize.
UNWANTED = (
    "cudaStreamBeginCapture",
    "cudaGraphInstantiate",
    "cudaMalloc",
    "cudaFree",
    "cudaHostAlloc",
    "cudaMallocHost",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaMemcpy",
)


class Driven:
    """A replica in bfloat16 with two dozen adapters of many ranks, all of which have been in use."""

    def __init__(self, folder: Path) -> None:
        self.names = write_variants(folder / "adapters", write_base("llama3", folder / "base"), seed=7)
        options = ReplicaOptions(
            base=str(folder / "base"),
            adapter_roots=(folder / "adapters",),
            dtype="bfloat16",
            device="cuda",
            adapter_memory="50MB",
            kv_memory="50MB",
        )
        self.replica = LocalReplica(Surroundings.prepare(options), options, lambda: 0.0, NoEvents())
        self.num_requests = 0
        self.submit(self.names, max_tokens=2)
        while self.replica.num_unfinished:
            self.replica.poll()

    def submit(self, adapters: list[str], max_tokens: int) -> None:
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        first = self.num_requests
        self.num_requests += len(adapters)
        self.replica.submit(
            [
                Request(
                    id=str(first + i),
                    line=first + i,
                    prompt_token_ids=(5, 6, 7, first % 50),
                    adapter=adapter,
                    sampling=sampling,
                )
                for i, adapter in enumerate(adapters)
            ]
        )

    def drive(self, arriving: list[list[str]]) -> Counter[str]:
        """Steps, before some of which requests arrive; how often each CUDA function was called."""
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            for adapters in arriving:
                self.submit(adapters, max_tokens=3)
                self.replica.poll()
        for _ in range(4):  # those that have arrived end
            self.replica.poll()
        calls = {each.key: each.count for each in profiled.key_averages() if each.key.startswith("cu")}
        return Counter(calls)


def test_other_adapters_cost_no_capture_no_allocation_and_no_wait(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    driven.submit(driven.names[:4], max_tokens=300)
    # With every third step, so that two of three are decoding steps: adapters that are in use anyway, then
    # others every time, of all kinds and ranks.
    others = [[] if i % 3 else [driven.names[4 + i], driven.names[5 + i]] for i in range(NUM_STEPS // 2)] * 2
    same = [driven.names[:2] if adapters else [] for adapters in others]
    driven.drive(same)  # whatever comes once
    constant = driven.drive(same)
    resident = driven.drive(others)
    driven.replica.evict_adapters(driven.names[4:])
    cold = driven.drive(others)
    for changing in (resident, cold):
        assert changing["cudaGraphLaunch"] > 0
        assert {name: changing[name] for name in UNWANTED if changing[name] > constant[name]} == {}
        assert changing["cudaEventSynchronize"] <= constant["cudaEventSynchronize"] + 2
    assert constant["cudaMalloc"] == constant["cudaGraphInstantiate"] == 0
