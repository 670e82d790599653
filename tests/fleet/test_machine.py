from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.machine import choose_device, choose_dtype, describe_device, free_host_bytes

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


@pytest.mark.parametrize(("num_threads", "words"), [(1, "1 thread"), (2, "2 threads")])
def test_threads_are_counted(monkeypatch: pytest.MonkeyPatch, num_threads: int, words: str) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    assert describe_device(CPU).endswith(f", {words}")


@pytest.mark.parametrize(("limit", "expected"), [("max", 7 * 1024), ("6000", 2000), ("900000", 7 * 1024)])
def test_a_container_has_what_its_limit_leaves(tmp_path: Path, limit: str, expected: int) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:       7 kB\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("4000\n")
    assert free_host_bytes(meminfo, tmp_path) == expected
    assert free_host_bytes(meminfo, tmp_path / "no cgroups") == 7 * 1024
