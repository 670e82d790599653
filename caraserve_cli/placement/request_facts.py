"""What a placement knows of a request. Data and nothing but data."""

from __future__ import annotations

import math
from dataclasses import dataclass

from caraserve_cli.core import AdapterInfo, Bounds, Request

_NO_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """One request that is to be placed, or was.

    Attributes:
        id: no other request that is placed has it.
        prompt_tokens: at least 1.
        output_tokens: that are expected, at least 1; its longest answer where nothing better is known.
        arrival_ms: on the clock of the loads.
        adapter: by name; None for the base alone, and the next two are then 0.
        lora_rank: the largest of its adapter's modules.
        adapter_bytes: of its adapter, in a device pool.
        bounds: that it carries.
    """

    id: str
    prompt_tokens: int
    output_tokens: int
    arrival_ms: float = 0.0
    adapter: str | None = None
    lora_rank: int = 0
    adapter_bytes: int = 0
    bounds: Bounds = _NO_BOUNDS

    @staticmethod
    def of(request: Request, adapter: AdapterInfo | None, output_tokens: int | None = None) -> RequestFacts:
        """The facts of a tokenised request.

        Args:
            request: to be placed.
            adapter: the one that it names.
            output_tokens: that are expected; None for its longest answer.
        """
        return RequestFacts(
            id=request.id,
            prompt_tokens=len(request.prompt_token_ids),
            output_tokens=max(1, request.sampling.max_tokens if output_tokens is None else output_tokens),
            arrival_ms=request.arrival_ms,
            adapter=adapter.name if adapter else None,
            lora_rank=adapter.lora_rank if adapter else 0,
            adapter_bytes=adapter.num_bytes if adapter else 0,
            bounds=request.bounds,
        )

    @property
    def kv_tokens(self) -> int:
        """In the cache, when its answer is complete."""
        return self.prompt_tokens + self.output_tokens

    @property
    def mean_kv_tokens(self) -> float:
        """In the cache, on average over its decoding steps."""
        return self.prompt_tokens + self.output_tokens / 2

    def ttft_left_ms(self, now_ms: float) -> float:
        """Until its first token is due; infinite without such a bound, below 0 when it is late."""
        return _left_ms(self.bounds.ttft_slo_ms, self.arrival_ms, now_ms)

    def deadline_left_ms(self, now_ms: float) -> float:
        """Until its last token is due; infinite without such a bound, below 0 when it is late."""
        return _left_ms(self.bounds.deadline_ms, self.arrival_ms, now_ms)

    def token_bound_ms(self, now_ms: float) -> float:
        """How long each of its tokens may take from now on, by its TPOT bound and its deadline, whichever is
        tighter; infinite without both."""
        tpot_slo_ms = math.inf if self.bounds.tpot_slo_ms is None else self.bounds.tpot_slo_ms
        return min(tpot_slo_ms, self.deadline_left_ms(now_ms) / self.output_tokens)


def _left_ms(bound_ms: float | None, arrival_ms: float, now_ms: float) -> float:
    return math.inf if bound_ms is None else arrival_ms + bound_ms - now_ms
