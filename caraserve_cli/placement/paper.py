"""Algorithm 1 of the paper, to the letter."""

from __future__ import annotations

import math

import numpy as np

from caraserve_cli.perf.batch_load import FloatArray
from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.request_facts import RequestFacts
from caraserve_cli.placement.tie_break import drawn_by, with_fewest


class PaperPlacement:
    """Paper, section 3, for a request i:

    1. candidates: replicas with the base, the adapter and memory;
    2. exists = running + queue, on each of them;
    3. Δprefill = PrePerf(queue + i) − PrePerf(queue);
    4. Δdecode = DecPerf(exists + i) − DecPerf(exists);
    5. cost = Δprefill / average response length + Δdecode;
    6. if DecPerf(exists + i) > SLO: cost is infinite;
    7. total = cost × (number running + number queued); the smallest wins.

    What the paper leaves open, and what is done here:
    - *The base and the adapter.* Every replica of a fleet has the base and reads every adapter, so that the
      candidates are those with room (`ReplicaLoads.has_room`). Without any, the request waits.
    - *The batch.* An adapter counts once for each of its requests, as where every request has another one.
    - *The queue's prefill.* Prompts are computed in steps that also decode for who runs, as engines do here.
    - *The SLO.* The paper has one for all, on the time per token; here it is the request's own `tpot_slo_ms`,
      and infinite without one.
    - *Average response length* is that expected of all requests on the fleet. Without any, which is 0 / 0,
      it is the request's own.
    - *An idle replica* has cost × 0: 0, whatever i costs there, and so it wins.
    - *Infinite × 0*, an idle replica that breaks the SLO with i alone, stays infinite.
    - *All are infinite.* They are equal, and the request is placed all the same.
    - *Of equals*, idle ones or infinite ones mostly, those with the fewest requests, and of these the one
      that the request's id draws (`tie_break`): no order of a list decides, and the same request goes to the
      same replica every time.
    """

    name = "paper"

    def choose(self, request: RequestFacts, loads: ReplicaLoads) -> int | None:
        """See `Placement.choose`."""
        candidates = loads.has_room(request).nonzero()[0]
        if not len(candidates):
            return None
        costs = self.total_costs(request, loads)[candidates]
        candidates = candidates[costs == costs.min()]
        return drawn_by(request.id, with_fewest(loads.num_requests, candidates), loads.keys)

    def total_costs(self, request: RequestFacts, loads: ReplicaLoads) -> FloatArray:
        """Line 7 for every replica, candidate or not, shape [N]; never below 0, never "not a number"."""
        num_requests = loads.num_requests
        num_placed = int(num_requests.sum())
        response_tokens = loads.output_tokens.sum() / num_placed if num_placed else request.output_tokens
        exists_ms = loads.step_models.decode_ms(loads.batch_of_requests())
        after_ms = loads.step_models.decode_ms(loads.batch_of_requests(request))
        queue_tokens = loads.backlog_tokens + request.prompt_tokens
        queue_ms = loads.step_models.prompts_ms(queue_tokens, loads.queue_ranks(request), loads.num_running)
        costs = (queue_ms - loads.backlog_ms) / response_tokens + (after_ms - exists_ms)
        slo_ms = request.bounds.tpot_slo_ms
        return np.where(after_ms > (math.inf if slo_ms is None else slo_ms), math.inf, costs * num_requests)
