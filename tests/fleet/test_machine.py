from __future__ import annotations

import pytest
import torch

from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.machine import choose_device, choose_dtype

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
