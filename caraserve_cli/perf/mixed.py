"""How long a step takes that computes prompts beside requests that decode, as most steps with prompts are.

It differs from a step of as many tokens of prompts alone: each request that decodes reads its context in the
kernel that is made for prompts; the LoRA kernels are those for many tokens, whose time is not the line of a
decoding step; and where steps are planned ahead the host's time passes beneath the step before, which a step
that is measured alone has in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from caraserve_cli.perf.batch_load import NO_RANKS, RankSums
from caraserve_cli.perf.least_squares import FitQuality, fit_costs


class MixedStep(NamedTuple):
    """A step with `prompt_tokens` of prompts beside `num_decoding` requests, whose contexts have `kv_tokens`
    together; `ranks` of the distinct adapters of all of them."""

    prompt_tokens: int
    num_decoding: int
    kv_tokens: float
    ranks: RankSums[int] = NO_RANKS


@dataclass(frozen=True, slots=True)
class MixedModel:
    """ms = alpha_ms + beta_ms · tokens + gamma_ms · (tokens above knee_tokens) + request_ms · (requests that
    decode) + kv_token_ms · (tokens in the cache), the tokens being those of prompts and one a request; and
    with adapters + lora_ms + lora_rank_ms · (sum of ranks) + lora_request_ms · (requests that decode)
    + lora_token_ms · (tokens of prompts), with the kernel that does not pad."""

    alpha_ms: float
    beta_ms: float
    gamma_ms: float
    knee_tokens: float
    request_ms: float
    kv_token_ms: float
    lora_ms: float
    lora_rank_ms: float
    lora_request_ms: float
    lora_token_ms: float
    quality: FitQuality

    @staticmethod
    def fit(steps: Sequence[MixedStep], times_ms: Sequence[float], knee_tokens: float) -> MixedModel:
        """The model through steps of several sizes, with adapters and without.

        Args:
            steps: at least nine.
            times_ms: of each step, above 0.
            knee_tokens: from which more tokens cost more, as steps of prompts alone have told.

        Raises:
            ProfileError: the points follow no such model.
        """
        rows = [(*_base_terms(step, knee_tokens), *_lora_terms(step)) for step in steps]
        costs = fit_costs(rows, times_ms, relative=True)
        predicted = [_sum(costs, row) for row in rows]
        quality = FitQuality.of(predicted, times_ms)
        quality.require("prompts beside decoding requests")
        alpha_ms, beta_ms, gamma_ms, request_ms, kv_token_ms, *lora = costs
        lora_ms, lora_rank_ms, lora_request_ms, lora_token_ms = lora
        return MixedModel(
            alpha_ms=alpha_ms,
            beta_ms=beta_ms,
            gamma_ms=gamma_ms,
            knee_tokens=knee_tokens,
            request_ms=request_ms,
            kv_token_ms=kv_token_ms,
            lora_ms=lora_ms,
            lora_rank_ms=lora_rank_ms,
            lora_request_ms=lora_request_ms,
            lora_token_ms=lora_token_ms,
            quality=quality,
        )

    def step_ms(self, step: MixedStep) -> float:
        """Milliseconds of one step."""
        costs = (self.alpha_ms, self.beta_ms, self.gamma_ms, self.request_ms, self.kv_token_ms)
        return _sum(costs, _base_terms(step, self.knee_tokens)) + self.added_ms(step)

    def added_ms(self, step: MixedStep) -> float:
        """What adapters add to one step, also to one of prompts alone; 0 without any."""
        costs = (self.lora_ms, self.lora_rank_ms, self.lora_request_ms, self.lora_token_ms)
        return _sum(costs, _lora_terms(step))


def _base_terms(step: MixedStep, knee_tokens: float) -> tuple[float, ...]:
    num_tokens = step.prompt_tokens + step.num_decoding
    above_knee = max(0.0, num_tokens - knee_tokens)
    return 1.0, float(num_tokens), above_knee, float(step.num_decoding), step.kv_tokens


def _lora_terms(step: MixedStep) -> tuple[float, ...]:
    if not step.ranks.num_adapters:
        return 0.0, 0.0, 0.0, 0.0
    return 1.0, float(step.ranks.lora_rank_sum), float(step.num_decoding), float(step.prompt_tokens)


def _sum(costs: Sequence[float], terms: Sequence[float]) -> float:
    return sum(cost * term for cost, term in zip(costs, terms, strict=True))
