"""How long a step takes that computes prompts beside requests that decode, as most steps with prompts are.

It differs from a step of as many tokens of prompts alone: each request that decodes reads its context in the
kernel that is made for prompts; and where steps are planned ahead the host's time passes beneath the step
before, which a step that is measured alone has in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from caraserve_cli.perf.least_squares import FitQuality, fit_costs


class MixedStep(NamedTuple):
    """A step with `prompt_tokens` of prompts beside `num_decoding` requests, whose contexts have `kv_tokens`
    together."""

    prompt_tokens: int
    num_decoding: int
    kv_tokens: float


@dataclass(frozen=True, slots=True)
class MixedModel:
    """ms = alpha_ms + beta_ms · tokens + gamma_ms · (tokens above knee_tokens) + request_ms · (requests that
    decode) + kv_token_ms · (tokens in the cache), the tokens being those of prompts and one a request."""

    alpha_ms: float
    beta_ms: float
    gamma_ms: float
    knee_tokens: float
    request_ms: float
    kv_token_ms: float
    quality: FitQuality

    @staticmethod
    def fit(steps: Sequence[MixedStep], times_ms: Sequence[float], knee_tokens: float) -> MixedModel:
        """The model through steps of several sizes.

        Args:
            steps: at least five.
            times_ms: of each step, above 0.
            knee_tokens: from which more tokens cost more, as steps of prompts alone have told.

        Raises:
            ProfileError: the points follow no such model.
        """
        rows = [_terms(step, knee_tokens) for step in steps]
        costs = fit_costs(rows, times_ms, relative=True)
        predicted = [sum(c * t for c, t in zip(costs, row, strict=True)) for row in rows]
        alpha_ms, beta_ms, gamma_ms, request_ms, kv_token_ms = costs
        quality = FitQuality.of(predicted, times_ms)
        quality.require("prompts beside decoding requests")
        return MixedModel(alpha_ms, beta_ms, gamma_ms, knee_tokens, request_ms, kv_token_ms, quality)

    def step_ms(self, step: MixedStep) -> float:
        """Milliseconds of one step of the base alone."""
        costs = (self.alpha_ms, self.beta_ms, self.gamma_ms, self.request_ms, self.kv_token_ms)
        return sum(c * t for c, t in zip(costs, _terms(step, self.knee_tokens), strict=True))


def _terms(step: MixedStep, knee_tokens: float) -> tuple[float, float, float, float, float]:
    num_tokens = step.prompt_tokens + step.num_decoding
    above_knee = max(0.0, num_tokens - knee_tokens)
    return 1.0, float(num_tokens), above_knee, float(step.num_decoding), step.kv_tokens
