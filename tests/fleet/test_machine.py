from __future__ import annotations

import pytest
import torch

from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.machine import choose_device, choose_dtype, free_host_bytes, plan_memory
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.model.config import load_decoder_config
from tests.cli.command import SAMPLE

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_float16_never_runs_on_the_cpu() -> None:
    assert choose_dtype("auto", CPU, torch.float16) == torch.float32
    assert choose_dtype("auto", CUDA, torch.float16) == torch.float16
    assert choose_dtype("auto", CUDA, torch.bfloat16) == torch.bfloat16
    assert choose_dtype("auto", CPU, None) == torch.float32
    assert choose_dtype("bfloat16", CPU, torch.float32) == torch.bfloat16
    with pytest.raises(OptionError, match="--dtype: float16"):
        choose_dtype("float16", CPU, torch.float16)


def test_the_device_is_there_or_refused() -> None:
    assert choose_device("cpu") == CPU
    if torch.cuda.is_available():
        assert choose_device("auto").type == "cuda"
    else:
        assert choose_device("auto") == CPU
        with pytest.raises(OptionError, match="--device: 'cuda'"):
            choose_device("cuda")


def test_memory_is_shared_out_as_asked() -> None:
    config = load_decoder_config(SAMPLE / "base")
    block_bytes = 2 * 6 * 16 * 4 * 32 * 4
    options = ReplicaOptions(base="", kv_memory=f"{10 * block_bytes}B", adapter_memory="5MB")
    plan = plan_memory(options, config, torch.float32, CPU)
    assert plan.engine.num_kv_blocks == 10
    assert plan.engine.adapter_memory_bytes == 5_000_000
    assert 0 < plan.host_adapter_bytes < free_host_bytes()
    with pytest.raises(OptionError, match="--kv-memory"):
        plan_memory(ReplicaOptions(base="", kv_memory="10B"), config, torch.float32, CPU)


def test_no_more_cache_than_could_ever_be_used() -> None:
    config = load_decoder_config(SAMPLE / "base")
    options = ReplicaOptions(base="", max_running=2, kv_memory="8GB")
    assert plan_memory(options, config, torch.float32, CPU).engine.num_kv_blocks == 2 * 512 // 16
