"""How memory is shared out, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.machine import free_host_bytes
from caraserve_cli.fleet.memory_plan import MemoryPlan, plan_memory
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.model.config import DecoderConfig, load_decoder_config
from caraserve_cli.model.resolve import resolve_base
from tests.cli.command import SAMPLE

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GB = 10**9
H200_BYTES = 150_754_820_096


@pytest.fixture
def config() -> DecoderConfig:
    return load_decoder_config(SAMPLE / "base")


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is (free, total) bytes to the plan, and nothing else."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (H200_BYTES - GB // 2, H200_BYTES))


def plan_7b(**options: str | int) -> MemoryPlan:
    base = resolve_base("llama2-7b", "random")
    asked = ReplicaOptions(base="llama2-7b", weights="random", **options)  # type: ignore[arg-type]
    return plan_memory(asked, base.config, torch.bfloat16, CUDA)


def test_memory_is_shared_out_as_asked(config: DecoderConfig) -> None:
    block_bytes = 2 * 6 * 16 * 4 * 32 * 4
    options = ReplicaOptions(base="", kv_memory=f"{10 * block_bytes}B", adapter_memory="5MB")
    plan = plan_memory(options, config, torch.float32, CPU)
    assert plan.engine.num_kv_blocks == 10
    assert plan.engine.adapter_memory_bytes == 5_000_000
    assert 0 < plan.host_adapter_bytes < free_host_bytes()
    with pytest.raises(OptionError, match="--kv-memory"):
        plan_memory(ReplicaOptions(base="", kv_memory="10B"), config, torch.float32, CPU)


def test_no_more_cache_than_could_ever_be_used(config: DecoderConfig) -> None:
    options = ReplicaOptions(base="", max_running=2, kv_memory="8GB")
    assert plan_memory(options, config, torch.float32, CPU).engine.num_kv_blocks == 2 * 512 // 16


@pytest.mark.usefixtures("on_a_gpu")
class TestOnAGpu:
    def test_all_parts_fit_together(self) -> None:
        plan = plan_7b()
        parts = plan.base_bytes + plan.engine.adapter_memory_bytes + plan.kv_bytes + plan.working_bytes
        assert 0.99 * plan.total_bytes < parts <= plan.total_bytes == int(0.9 * H200_BYTES)
        assert plan.base_bytes == 2 * 6_738_415_616, "Llama-2-7B's parameters in bfloat16"

    def test_what_one_part_takes_the_cache_has_not(self) -> None:
        small, large = plan_7b(adapter_memory="4.3GB"), plan_7b(adapter_memory="30GB")
        assert small.kv_bytes - large.kv_bytes == pytest.approx(25.7 * GB, rel=0.01)

    def test_a_gpu_can_be_shared(self) -> None:
        assert plan_7b(gpu_memory="40GB").total_bytes == 40 * GB
        assert plan_7b(gpu_memory="0.5").total_bytes == H200_BYTES // 2
        assert plan_7b(gpu_memory="999GB").total_bytes == H200_BYTES - GB // 2, "no more than is free"

    def test_a_base_that_leaves_no_room_is_refused(self) -> None:
        with pytest.raises(OptionError, match="--kv-memory: one block of 16 tokens"):
            plan_7b(gpu_memory="10GB")

    def test_it_is_told_in_one_line(self) -> None:
        assert plan_7b(gpu_memory="40GB", kv_memory="20GB", adapter_memory="2GB").describe() == (
            "base 13.5 GB, adapters 2.0 GB, KV cache 20.0 GB (38,144 tokens), steps 2.8 GB; of 40.0 GB"
        )
