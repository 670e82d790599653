"""The device of a recipe."""

from __future__ import annotations

import pytest
import torch

from caraserve_cli.bench.bench_device import bench_device, free_memory
from caraserve_cli.errors import OptionError


def test_what_is_there_is_chosen() -> None:
    assert bench_device("mine", "cpu") == torch.device("cpu")
    free_memory(torch.device("cpu"))


def test_a_gpu_that_is_not_there_is_refused_in_the_recipes_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench_device("mine", "auto") == torch.device("cpu")
    with pytest.raises(
        OptionError, match="recipe 'mine' has device = \"cuda\", and torch sees no CUDA device"
    ):
        bench_device("mine", "cuda")
