from __future__ import annotations

import subprocess
import sys
from math import prod

import pytest
import torch

from caraserve_cli.model.config import parse_decoder_config
from caraserve_cli.model.shapes import KNOWN_BASES
from caraserve_cli.model.weights import empty_weights, named_slots

# Parameters in billions as the model cards publish them; they tell a wrong width, layer count or tying.
PUBLISHED_BILLIONS = {
    "llama2-7b": 6.74,
    "llama2-13b": 13.02,
    "llama2-70b": 68.98,
    "llama3-8b": 8.03,
    "llama3-70b": 70.55,
    "llama3.1-8b": 8.03,
    "llama3.1-70b": 70.55,
    "llama3.2-1b": 1.24,
    "llama3.2-3b": 3.21,
    "mistral-7b": 7.24,
    "mistral-7b-v0.3": 7.25,
    "qwen2.5-0.5b": 0.49,
    "qwen2.5-1.5b": 1.54,
    "qwen2.5-3b": 3.09,
    "qwen2.5-7b": 7.62,
    "qwen2.5-14b": 14.77,
    "qwen2.5-32b": 32.76,
    "qwen2.5-72b": 72.71,
    "qwen3-0.6b": 0.60,
    "qwen3-1.7b": 1.72,
    "qwen3-4b": 4.02,
    "qwen3-8b": 8.19,
    "qwen3-14b": 14.77,
    "qwen3-32b": 32.76,
}


@pytest.mark.parametrize("name", KNOWN_BASES)
def test_a_known_base_has_its_published_number_of_parameters(name: str) -> None:
    config = parse_decoder_config(KNOWN_BASES[name].config, where=name)
    weights = empty_weights(config, torch.bfloat16, torch.device("meta"))
    num_parameters = sum(prod(slot.shape) for slot in named_slots(weights, config).values())
    assert num_parameters / 1e9 == pytest.approx(PUBLISHED_BILLIONS[name], abs=0.0051)


def test_only_the_first_mistral_slides() -> None:
    windows = {
        name: parse_decoder_config(base.config, where=name).sliding_window[0]
        for name, base in KNOWN_BASES.items()
    }
    assert {name for name, window in windows.items() if window is not None} == {"mistral-7b"}


def test_shapes_need_no_torch() -> None:
    code = "import sys, caraserve_cli.model.shapes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
