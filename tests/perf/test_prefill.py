"""Prefill steps: one line where one tells it, two that meet where weights bound small steps."""

from __future__ import annotations

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.prefill import PrefillModel
from tests.perf.h200 import prefill_points

TOKENS = [16, 32, 64, 128, 256, 512, 1024]


def test_one_line() -> None:
    model = PrefillModel.fit(TOKENS, [2 + 0.01 * n for n in TOKENS])
    assert (model.alpha_ms, model.beta_ms) == pytest.approx((2, 0.01))
    assert model.gamma_ms == 0
    assert model.step_ms(300) == pytest.approx(5)


def test_two_lines_that_meet() -> None:
    model = PrefillModel.fit(TOKENS, [3 + 0.02 * max(0, n - 128) for n in TOKENS])
    assert model.knee_tokens == 128
    assert model.step_ms(40) == pytest.approx(3)
    assert model.step_ms(228) == pytest.approx(5)


def test_no_knee_for_noise() -> None:
    """A few percent up and down is no reason for a second line."""
    model = PrefillModel.fit(TOKENS, [(2 + 0.01 * n) * (1.03 if n % 3 else 0.97) for n in TOKENS])
    assert model.gamma_ms == 0


def test_steps_of_the_h200() -> None:
    """Up to 128 tokens nearly the time of reading the weights, then that of multiplying."""
    tokens, steps_ms = prefill_points()
    model = PrefillModel.fit(tokens, steps_ms)
    assert model.quality.r2 > 0.99
    assert model.quality.largest_residual < 0.15
    assert model.gamma_ms > 5 * model.beta_ms


def test_a_step_of_more_tokens_never_takes_less() -> None:
    model = PrefillModel.fit([16, 64, 256, 1024], [5.0, 4.9, 5.1, 5.0])
    assert model.beta_ms >= 0
    assert model.step_ms(1024) >= model.step_ms(1)


def test_what_follows_no_model_is_refused() -> None:
    with pytest.raises(ProfileError, match="prefill steps: the 7 measured points follow no model"):
        PrefillModel.fit(TOKENS, [1.0, 9.0, 2.0, 8.0, 1.0, 9.0, 1.0])
