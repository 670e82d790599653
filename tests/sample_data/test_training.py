"""The training loop, on a model of a few thousand parameters."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from prompts import PAD_TOKEN_ID, VOCAB_SIZE, Turn
from training import Corpus, Schedule, train
from transformers import LlamaConfig, LlamaForCausalLM

CPU = torch.device("cpu")


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        pad_token_id=PAD_TOKEN_ID,
    )
    return LlamaForCausalLM(config)


def _corpus() -> Corpus:
    return Corpus.of(cycle([Turn("upper", "fox", "FOX")]), num_rows=4, num_tokens=48, device=CPU)


def test_the_rate_rises_to_its_peak_and_falls_to_almost_nothing() -> None:
    schedule = Schedule(num_steps=100, batch_rows=1, learning_rate=1.0, warmup_steps=10)
    factors = [schedule.rate_factor(step) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[100] < 0.05


def test_training_learns_and_is_reproducible() -> None:
    schedule = Schedule(num_steps=30, batch_rows=4, learning_rate=1e-2, warmup_steps=2)
    first, second = _model(), _model()
    losses = [train(first, _corpus(), schedule, seed=1), train(second, _corpus(), schedule, seed=1)]
    assert losses[0] < 1.0
    assert losses[0] == losses[1]
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_frozen_parameters_stay_as_they_are() -> None:
    model = _model()
    frozen = model.get_parameter("model.embed_tokens.weight").requires_grad_(False)
    before = frozen.clone()
    train(model, _corpus(), Schedule(num_steps=3, batch_rows=2, learning_rate=1e-2, warmup_steps=1), seed=0)
    assert torch.equal(frozen, before)
