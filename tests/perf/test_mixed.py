"""Prompts beside decoding requests: a known model is found again, and what follows none is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.batch_load import NO_RANKS, RankSums
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.mixed import MixedModel, MixedStep

TRUE = MixedModel(
    alpha_ms=5.0,
    beta_ms=0.01,
    gamma_ms=0.02,
    knee_tokens=256,
    request_ms=0.03,
    kv_token_ms=0.0005,
    lora_ms=0.7,
    lora_rank_ms=0.001,
    lora_request_ms=0.02,
    lora_token_ms=0.004,
    quality=FitQuality(1, 0, 0),
)
STEPS = [
    MixedStep(prompt_tokens, num_decoding, num_decoding * context, ranks)
    for prompt_tokens in (16, 128, 512)
    for num_decoding, rank_sum in ((1, 8), (4, 120), (16, 480), (64, 960))
    for context in (16, 512)
    for ranks in (NO_RANKS, RankSums(min(32, num_decoding), rank_sum, 64))
]


def test_a_step_by_hand() -> None:
    """540 tokens, 28 requests with 1000 tokens in the cache, ranks 96."""
    step = MixedStep(512, 28, 1000, RankSums(3, 96, 64))
    base_ms = 5 + 0.01 * 540 + 0.02 * 284 + 0.03 * 28 + 0.0005 * 1000
    lora_ms = 0.7 + 0.001 * 96 + 0.02 * 28 + 0.004 * 512
    assert TRUE.step_ms(step) == pytest.approx(base_ms + lora_ms)
    assert TRUE.added_ms(step) == pytest.approx(lora_ms)
    assert TRUE.step_ms(step._replace(ranks=NO_RANKS)) == pytest.approx(base_ms)


def test_a_known_model_is_found_again() -> None:
    found = MixedModel.fit(STEPS, [TRUE.step_ms(step) for step in STEPS], TRUE.knee_tokens)
    assert found.quality.largest_residual < 1e-6
    for step in (MixedStep(200, 40, 9000, RankSums(20, 700, 128)), MixedStep(300, 2, 50)):
        assert found.step_ms(step) == pytest.approx(TRUE.step_ms(step), rel=1e-6)


def test_what_follows_no_model_is_refused() -> None:
    with pytest.raises(ProfileError, match="prompts beside decoding requests: the 48 measured points"):
        MixedModel.fit(STEPS, [5.0 if index % 2 else 50.0 for index in range(len(STEPS))], 256)


def test_no_cost_is_below_zero() -> None:
    """Adapters that seem to save time cost nothing."""
    saving = replace(TRUE, lora_ms=-0.4, lora_rank_ms=0, lora_request_ms=0, lora_token_ms=0)
    found = MixedModel.fit(STEPS, [saving.step_ms(step) for step in STEPS], 256)
    assert found.added_ms(MixedStep(16, 4, 64, RankSums(4, 120, 64))) >= 0
