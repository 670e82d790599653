"""The device of a benchmark: chosen or refused in a recipe's words, and its memory given back."""

from __future__ import annotations

import gc

import torch

from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.machine import choose_device
from caraserve_cli.fleet.options import DeviceName


def bench_device(recipe_name: str, device: DeviceName) -> torch.device:
    """The device that a recipe asks for.

    Raises:
        OptionError: this machine does not have it.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise OptionError(
            f"recipe '{recipe_name}' has device = \"cuda\", and torch sees no CUDA device; run it "
            "where there is one, or a copy of it with another device"
        )
    return choose_device(device)


def free_memory(device: torch.device) -> None:
    """Give back what is used no more, also what cycles may still hold: pools, graphs, whole models."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
