"""Ours: what a request costs where it goes, itself included."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from caraserve_cli.perf.batch_load import BoolArray, FloatArray
from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.nearness import nearness
from caraserve_cli.placement.request_facts import RequestFacts
from caraserve_cli.placement.tie_break import drawn_by, with_fewest

# What it costs if the request's own first or last token comes too late, in milliseconds for one token.
# Chosen, not measured.
_OWN_MISS_MS = 20.0
# Costs that differ by less are equal: a measured model does not know better.
_EQUAL_COST = 1.01


class Forecast(NamedTuple):
    """What would come of a request on each replica; each attribute has shape [N].

    Attributes:
        ttft_ms: from now until its first token.
        finish_ms: from now until its last one.
        step_ms: a decoding step with it.
        slower_ms: how much longer a token takes for those already there: their steps, and for as long as an
            answer lasts its share of what a step with the prompt takes beyond a decoding step.
        interrupted_ms: how much longer a token of the request takes than a step, for the prompts that come
            while it is answered.
    """

    ttft_ms: FloatArray
    finish_ms: FloatArray
    step_ms: FloatArray
    slower_ms: FloatArray
    interrupted_ms: FloatArray


class RankAwarePlacement:
    """The paper's cost, and what it leaves out. The cost of a replica, in milliseconds for one token, is

        (Δprefill / average response length + Δdecode) · requests there    what all the others lose, as in
            · what a millisecond counts for them                           the paper
        + (time until its last token / its tokens                          what it takes itself
           + Σ interruptions there / average response length               what is to come meanwhile
           + `_OWN_MISS_MS`, if its first or last token is late)
            · what a millisecond counts for itself.

    A millisecond counts 1 for who has no bound, and the more, the nearer the time of a token is to the bound
    on it (`nearness`). Without this the cost is least where the sum of all times is: that leaves some
    replicas near the bound, with adapters of large ranks or long prompts, and most who broke it were there.
    Simulated with the workload and machine of `recipes/paper-cluster.toml`, mean
    of seeds 101 and 102, attainment and mean time per token, if a millisecond counts 1 / 1/√(1 - x) /
    1/(1 - x), x the share of the bound: bgmv at 380 requests a second 98.3% 31.7 ms / 99.3% 32.3 / 99.4%
    32.9, mbgmv at 360/s 98.2% 32.4 / 99.2% 33.1 / 99.4% 33.6. The second is taken.

    Δprefill is what its prompt's step takes beyond the decoding step in whose place it comes, for that step
    decodes too. While an answer lasts, all others end once and others come in their places: what their
    prompts interrupt is taken to be what the prompts of those there did. Without this, long prompts gather
    where the fewest requests are, and interrupt each other.

    Its own time begins with waiting for those whose end makes room for it (`ReplicaLoads.shortage`), and for
    the prompts before it. Its first token then waits for its own prompt, and for the adapter or CPU workers,
    whichever is there first: the adapter is there at once, or comes, or is copied after all that the link
    has to do; CPU workers compute after all that they have to do. What comes after the first token needs the
    adapter. Nobody already there waits longer for a first token: prompts are computed in order.

    Nothing is divided by 0, for the request itself is among those it is averaged with. Nothing is infinite: a
    request that breaks a bound everywhere goes where that costs least, and one that finds room is placed. Of
    equal costs the fewest requests win, then the replica that the request's id draws.
    """

    name = "rank-aware"

    def choose(self, request: RequestFacts, loads: ReplicaLoads) -> int | None:
        """See `Placement.choose`."""
        candidates = loads.has_room(request).nonzero()[0]
        if not len(candidates):
            return None
        costs_ms = self.costs_ms(request, loads)[candidates]
        candidates = candidates[costs_ms <= _EQUAL_COST * costs_ms.min()]
        return drawn_by(request.id, with_fewest(loads.num_requests, candidates), loads.keys)

    def costs_ms(self, request: RequestFacts, loads: ReplicaLoads) -> FloatArray:
        """The cost of every replica, with room or not, shape [N]; finite and above 0."""
        forecast = self.forecast(request, loads)
        own_ms = forecast.finish_ms / request.output_tokens
        own_ms += forecast.interrupted_ms
        bounds = request.bounds
        if bounds.ttft_slo_ms is not None or bounds.deadline_ms is not None:
            own_ms += _OWN_MISS_MS * _is_late(request, loads.now_ms, forecast)
        token_ms = forecast.step_ms + forecast.interrupted_ms
        own_ms *= nearness(token_ms, request.token_bound_ms(loads.now_ms))
        others_ms = forecast.slower_ms * loads.num_requests
        others_ms *= nearness(token_ms, loads.common_bound_ms)
        return others_ms + own_ms

    def forecast(self, request: RequestFacts, loads: ReplicaLoads) -> Forecast:
        """What would come of a request on every replica, with room or not."""
        num_new = loads.num_new(request)
        step_ms = loads.step_models.decode_ms(loads.batch(request, num_new))
        prompts_ms = loads.step_models.prompts_ms(
            loads.backlog_tokens + request.prompt_tokens, loads.queue_ranks(request), loads.num_running
        )
        # Of those there and itself.
        response_tokens = (loads.output_tokens + request.output_tokens) / (loads.num_requests + 1)
        # Of a batch in which answers end one after another, a share ends in that share of an answer's steps.
        wait_ms = loads.shortage(request, num_new)
        if wait_ms.any():
            wait_ms *= response_tokens * loads.decode_ms
        ttft_ms = wait_ms + prompts_ms
        ready_ms = ttft_ms
        if request.adapter is not None:
            ready_ms = self._adapter_ready_ms(request, loads)
            assisted_ms = self._assisted_ms(request, loads, wait_ms + loads.backlog_ms)
            np.maximum(ttft_ms, np.minimum(ready_ms, assisted_ms), out=ttft_ms)
        finish_ms = ttft_ms
        if request.output_tokens > 1:
            finish_ms = np.maximum(ttft_ms, ready_ms) + (request.output_tokens - 1) * step_ms
        interrupted_ms = loads.step_models.interruption_ms(request.prompt_tokens, loads.num_requests + 1)
        slower_ms = step_ms - loads.decode_ms
        slower_ms += interrupted_ms / response_tokens
        interrupted_ms += loads.interruptions_ms
        interrupted_ms /= response_tokens
        return Forecast(ttft_ms, finish_ms, step_ms, slower_ms, interrupted_ms)

    def _adapter_ready_ms(self, request: RequestFacts, loads: ReplicaLoads) -> FloatArray:
        """From now until its adapter, which is not None, is on each device."""
        assert request.adapter is not None
        now_ms = loads.now_ms
        cold_ms = np.maximum(loads.link_free_ms - now_ms, 0.0)
        cold_ms += loads.cold_times.copy_ms(request.adapter_bytes)
        return loads.places.until_ready_ms(request.adapter, cold_ms, now_ms)

    def _assisted_ms(self, request: RequestFacts, loads: ReplicaLoads, begin_ms: FloatArray) -> FloatArray:
        """From now until CPU workers have computed its prompt's LoRA part, which begins after `begin_ms`."""
        busy_ms = loads.cpu_free_ms - loads.now_ms
        return np.maximum(begin_ms, busy_ms) + loads.cold_times.assist_ms(request)


def _is_late(request: RequestFacts, now_ms: float, forecast: Forecast) -> BoolArray:
    """Where its first or its last token would come too late, shape [N]."""
    is_late: BoolArray = forecast.ttft_ms > request.ttft_left_ms(now_ms)
    is_late |= forecast.finish_ms > request.deadline_left_ms(now_ms)
    return is_late
