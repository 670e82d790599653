"""How long a step with prompts takes, by the tokens in it.

A step of few tokens is bound by reading the base's weights, one of many by multiplying: where one line does
not tell both, the model is two lines that meet. Knows nothing of contexts; attention is a small part of a
prompt's step as long as prompts are of some hundred tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caraserve_cli.perf.least_squares import FitQuality, fit_costs

# One line is kept if two that meet do not at least halve what it leaves of the squares. Chosen, not measured.
_WORTH_A_KNEE = 0.5
# A knee is told by points on both sides of it.
_LEAST_POINTS_WITH_KNEE = 5


@dataclass(frozen=True, slots=True)
class PrefillModel:
    """ms = alpha_ms + beta_ms · tokens + gamma_ms · (tokens above knee_tokens)."""

    alpha_ms: float
    beta_ms: float
    gamma_ms: float
    knee_tokens: float
    quality: FitQuality

    @staticmethod
    def fit(num_tokens: Sequence[int], times_ms: Sequence[float]) -> PrefillModel:
        """The model through steps of several sizes.

        Args:
            num_tokens: in each step, with at least two different values.
            times_ms: of each step, above 0.

        Raises:
            ProfileError: the points follow no such model.
        """
        inner = sorted(set(num_tokens))[1:-1]
        models = [_fit_with_knee(num_tokens, times_ms, None)]
        if len(set(num_tokens)) >= _LEAST_POINTS_WITH_KNEE:
            models += [_fit_with_knee(num_tokens, times_ms, knee) for knee in inner]
        left = [_weighted_squares(model, num_tokens, times_ms) for model in models]
        best = min(range(len(models)), key=left.__getitem__)
        model = models[best] if left[best] < _WORTH_A_KNEE * left[0] else models[0]
        model.quality.require("prefill steps")
        return model

    def step_ms(self, num_tokens: float) -> float:
        """Milliseconds of a step with `num_tokens` tokens, of prompts and of answers."""
        return (
            self.alpha_ms
            + self.beta_ms * num_tokens
            + self.gamma_ms * max(0.0, num_tokens - self.knee_tokens)
        )


def _fit_with_knee(
    num_tokens: Sequence[int], times_ms: Sequence[float], knee_tokens: int | None
) -> PrefillModel:
    knee = max(num_tokens) if knee_tokens is None else knee_tokens
    alpha_ms, beta_ms, gamma_ms = fit_costs([(1.0, n, max(0, n - knee)) for n in num_tokens], times_ms)
    predicted = [alpha_ms + beta_ms * n + gamma_ms * max(0, n - knee) for n in num_tokens]
    return PrefillModel(alpha_ms, beta_ms, gamma_ms, float(knee), FitQuality.of(predicted, times_ms))


def _weighted_squares(model: PrefillModel, num_tokens: Sequence[int], times_ms: Sequence[float]) -> float:
    """What `fit_costs` makes small."""
    return sum((model.step_ms(n) / time_ms - 1) ** 2 for n, time_ms in zip(num_tokens, times_ms, strict=True))
