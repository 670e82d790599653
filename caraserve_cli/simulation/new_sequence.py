"""The sequences of simulated requests. Nobody knows their tokens, only how many there are."""

from __future__ import annotations

from functools import lru_cache

from caraserve_cli.core import Request, SamplingParams, Sequence, Timings
from caraserve_cli.simulation.simulated_request import SimulatedRequest


@lru_cache(maxsize=4096)
def _tokens(num_tokens: int) -> tuple[int, ...]:
    """So many tokens, of which nobody knows more."""
    return (0,) * num_tokens


def new_sequence(request: SimulatedRequest) -> Sequence:
    """As an engine makes it. Its tokens are in no prefix cache."""
    facts = request.facts
    prompt = _tokens(facts.prompt_tokens)
    return Sequence(
        request=Request(
            id=facts.id,
            line=0,
            prompt_token_ids=prompt,
            adapter=facts.adapter,
            sampling=_sampling(request.max_output_tokens),
            bounds=facts.bounds,
            arrival_ms=facts.arrival_ms,
        ),
        timings=Timings(arrival_ms=facts.arrival_ms),
        token_ids=list(prompt),
        num_prompt_tokens=facts.prompt_tokens,
        max_output_tokens=request.max_output_tokens,
    )


@lru_cache(maxsize=64)
def _sampling(max_tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens)
