"""How memory is shared out, and what is said of it."""

from __future__ import annotations

import pytest
import torch

from caraserve_cli.errors import OptionError
from caraserve_cli.fleet import memory_plan
from caraserve_cli.fleet.machine import free_host_bytes
from caraserve_cli.fleet.memory_plan import GPU_BESIDE_RUNTIME_BYTES, MemoryPlan, plan_memory
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.model.config import load_decoder_config
from caraserve_cli.model.decoder_config import DecoderConfig
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


def test_what_cannot_be_used_is_not_taken_from_others(
    config: DecoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_plan, "free_host_bytes", lambda: 20 * GB)
    asked = plan_memory(ReplicaOptions(base="", kv_memory="5000GB"), config, torch.float32, CPU)
    default = plan_memory(ReplicaOptions(base=""), config, torch.float32, CPU)
    assert asked.kv_bytes == default.kv_bytes == 256 * 512 // 16 * 2 * 6 * 16 * 4 * 32 * 4
    assert asked.engine.adapter_memory_bytes == default.engine.adapter_memory_bytes


def test_a_pool_that_does_not_fit_is_named(config: DecoderConfig) -> None:
    with pytest.raises(OptionError, match=r"--adapter-memory: they come to [0-9.]+ [GM]B and 3000.0 GB"):
        plan_memory(ReplicaOptions(base="", adapter_memory="3000GB"), config, torch.float32, CPU)


def test_small_sizes_are_told_in_mb(config: DecoderConfig) -> None:
    options = ReplicaOptions(base="", kv_memory="2MB", adapter_memory="40KB")
    told = plan_memory(options, config, torch.float32, CPU).describe()
    assert "room for adapters 0.04 MB, KV cache 1.97 MB" in told
    assert " 0.0 GB" not in told  # 20.0 GB of free memory may be


def test_nothing_is_computed_beside_the_steps_of_a_cpu(config: DecoderConfig) -> None:
    assert plan_memory(ReplicaOptions(base=""), config, torch.float32, CPU).beside_bytes == 0


def test_a_gpus_memory_means_nothing_on_the_cpu(config: DecoderConfig) -> None:
    with pytest.raises(OptionError, match="--gpu-memory: the base runs on the CPU"):
        plan_memory(ReplicaOptions(base="", gpu_memory="1GB"), config, torch.float32, CPU)


def test_a_base_larger_than_the_host_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_plan, "free_host_bytes", lambda: 20 * GB)
    base = resolve_base("llama2-7b", "random")
    with pytest.raises(OptionError, match=r"--base: its weights take 27.0 GB"):
        plan_memory(ReplicaOptions(base="llama2-7b", weights="random"), base.config, torch.float32, CPU)


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
        with pytest.raises(OptionError, match=r"--base: its weights take 13.5 GB .* there are 10.0 GB"):
            plan_7b(gpu_memory="10GB")

    @pytest.mark.parametrize(
        "asked",
        [
            {"kv_memory": "70GB", "gpu_memory": "80GB"},
            {"kv_memory": "90GB", "adapter_memory": "50GB"},
            {"adapter_memory": "130GB"},
        ],
        ids=lambda asked: "+".join(asked),
    )
    def test_parts_that_do_not_fit_together_are_refused(self, asked: dict[str, str]) -> None:
        with pytest.raises(OptionError, match="--kv-memory"):
            plan_7b(**asked)

    def test_the_pool_makes_room_for_a_cache_that_is_asked_for(self) -> None:
        plan = plan_7b(gpu_memory="80GB", kv_memory="60GB")
        assert plan.kv_bytes == pytest.approx(60 * GB, rel=0.001)
        assert plan.kv_bytes + plan.engine.adapter_memory_bytes + plan.base_bytes < 80 * GB

    def test_steps_beside_the_others_have_their_share(self) -> None:
        """What they take is not left to a KV cache that gets the rest."""
        plan = plan_7b(gpu_memory="60GB", adapter_memory="2GB")
        residual_bytes, logits_bytes = 512 * 4 * 4096 * 2, 256 * 32_000 * (2 + 4 + 7 * 8)
        assert plan.beside_bytes > residual_bytes + logits_bytes + GPU_BESIDE_RUNTIME_BYTES
        smaller = plan_7b(gpu_memory="60GB", max_running=64, max_batch_tokens=64, prefill_chunk_tokens=64)
        assert smaller.beside_bytes < plan.beside_bytes
        together = plan_7b(gpu_memory="60GB", adapter_memory="2GB", tensor_parallel=2)
        assert together.beside_bytes == 0, "where several processes hold the base, there are none"
        assert plan.kv_bytes + plan.beside_bytes == pytest.approx(together.kv_bytes, rel=0.001)

    def test_it_is_told_in_one_line(self) -> None:
        assert plan_7b(gpu_memory="40GB", kv_memory="20GB", adapter_memory="2GB").describe() == (
            "base 13.5 GB, room for adapters 2.0 GB, KV cache 20.0 GB (38,144 tokens), steps 4.1 GB; "
            "of 40.0 GB"
        )
