"""The requests of a serving benchmark: when each arrives, which adapter it has, what its prompt is.

All of it follows from the case and the repeat, so that every strategy gets the same.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from itertools import islice

from caraserve_cli.bench.popularity import popularity_weights
from caraserve_cli.bench.synthetic import adapters_of, make_requests
from caraserve_cli.bench.timed_case import TimedCase
from caraserve_cli.core import Request
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.requests.arrival_process import poisson_ms


def make_arrivals(case: TimedCase, repeat: int, rate_per_s: float | None, vocab_size: int) -> list[Request]:
    """The requests of one repeat in the order of their arrivals, which count from the start of a run; without
    a rate all are there at once."""
    chosen = random.Random(f"arrivals {case.name} {repeat}")
    times_ms = [0.0] * case.num_requests
    if rate_per_s is not None:
        times_ms = list(islice(poisson_ms(chosen, rate_per_s), case.num_requests))
    adapters = _draw_adapters(case, chosen)
    return [
        dataclasses.replace(request, arrival_ms=arrival_ms, adapter=adapter.name, bounds=case.bounds)
        for request, arrival_ms, adapter in zip(
            make_requests(case, repeat, vocab_size), times_ms, adapters, strict=True
        )
    ]


def _draw_adapters(case: TimedCase, chosen: random.Random) -> Sequence[SyntheticAdapter]:
    adapters = adapters_of(case)
    if case.popularity is None:
        return [adapters[index % len(adapters)] for index in range(case.num_requests)]
    weights = popularity_weights(case.popularity, len(adapters))
    return chosen.choices(adapters, weights, k=case.num_requests)
