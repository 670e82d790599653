from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from caraserve_cli.core import FUSED_MODULES
from caraserve_cli.model.checkpoint import load_decoder, random_decoder
from caraserve_cli.model.config import load_decoder_config
from tests.model.tiny import CPU, FAMILIES, DenseAttention, logits_of, some_token_ids, write_checkpoint

LONG_FACTORS = [1.0, 1.5, 3.0, 7.0]
ROPE_KINDS: dict[str, dict[str, object]] = {
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 16,
        "beta_slow": 2,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
        "truncate": False,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": LONG_FACTORS,
        "original_max_position_embeddings": 16,
        "factor": 4.0,
    },
}


def assert_same_logits(folder: Path, model: torch.nn.Module, num_tokens: int) -> None:
    decoder = load_decoder(folder, load_decoder_config(folder), torch.float32, CPU)
    token_ids = some_token_ids(num_tokens)
    with torch.inference_mode():
        expected: Tensor = model(token_ids[None]).logits[0]
    actual = logits_of(decoder, token_ids)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert torch.equal(actual.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    assert_same_logits(tmp_path, write_checkpoint(tmp_path, family), num_tokens=40)


@pytest.mark.parametrize("num_tokens", [12, 40])
@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_every_rope_kind_is_that_of_transformers(tmp_path: Path, kind: str, num_tokens: int) -> None:
    rope_parameters = {"rope_theta": 10000.0, **ROPE_KINDS[kind]}
    model = write_checkpoint(tmp_path, rope_parameters=rope_parameters)
    assert_same_logits(tmp_path, model, num_tokens)


def test_dynamic_rope_beyond_its_original_context_is_that_of_transformers(tmp_path: Path) -> None:
    rope_parameters = {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}
    model = write_checkpoint(tmp_path, rope_parameters=rope_parameters)
    assert_same_logits(tmp_path, model, num_tokens=100)


def test_bfloat16_is_close_to_transformers(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path, "qwen3", dtype=torch.bfloat16)
    decoder = load_decoder(tmp_path, load_decoder_config(tmp_path), torch.bfloat16, CPU)
    token_ids = some_token_ids(40)
    with torch.inference_mode():
        expected = model(token_ids[None]).logits[0].float()
    actual = logits_of(decoder, token_ids)
    # The spread of the logits is about 1.
    torch.testing.assert_close(actual, expected, atol=0.05, rtol=0.05)


class RecordingLora:
    """Adds 1 to every output and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[str, ...], int, int]] = []
        self.begun: list[tuple[int, tuple[str, ...], Tensor]] = []

    def begin(self, layer: int, modules: tuple[str, ...], x: Tensor) -> bool:
        self.begun.append((layer, modules, x))
        return False

    def add(self, layer: int, modules: tuple[str, ...], x: Tensor, y: Tensor) -> None:
        assert self.begun.pop() == (layer, modules, x), "what is added was not begun"
        self.calls.append((layer, modules, x.shape[1], y.shape[1]))
        y += 1.0


def test_lora_meets_every_fused_group_of_every_layer_and_changes_the_result(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "qwen3")
    config = load_decoder_config(tmp_path)
    decoder = random_decoder(config, torch.float32, CPU, seed=0)
    token_ids, lora = some_token_ids(5), RecordingLora()
    with torch.inference_mode():
        attention = DenseAttention(config, decoder.rope.rotation(torch.arange(5)))
        adapted = decoder.logits(decoder.forward(token_ids, attention, lora))
    widths = {
        group: (config.shape.module_shape(group[0])[0], sum(config.shape.module_shape(m)[1] for m in group))
        for group in FUSED_MODULES
    }
    assert lora.calls == [(layer, group, *widths[group]) for layer in range(2) for group in FUSED_MODULES]
    assert not torch.allclose(adapted, logits_of(decoder, token_ids))


def test_layers_attend_in_order(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    config = load_decoder_config(tmp_path)
    decoder = random_decoder(config, torch.float32, CPU, seed=0)
    with torch.inference_mode():
        attention = DenseAttention(config, decoder.rope.rotation(torch.arange(3)))
        decoder.forward(some_token_ids(3), attention, RecordingLora())
    assert attention.layers == [0, 1]
