"""When requests arrive that do not say it themselves: endless series of times, drawn with a seed.

The n-th time follows from n, the seed and the process alone; memory does not grow with n. Times are
milliseconds from the start of a run, in order. Knows no requests and no clock.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import accumulate, count, repeat
from typing import NamedTuple

from caraserve_cli.requests.arrival_trace import ArrivalTrace, TraceMinute
from caraserve_cli.requests.urn import Urn

_MS_PER_MINUTE = 60_000.0


class Arrival(NamedTuple):
    """When a request arrives, and which of the trace's functions it invokes: its popularity, from 0; None
    where there is no trace."""

    ms: float
    function: int | None = None


def poisson_ms(chosen: random.Random, rate_per_s: float) -> Iterator[float]:
    """A Poisson process: independent, exponential gaps, the first before the first arrival."""
    return accumulate(chosen.expovariate(rate_per_s) * 1000 for _ in repeat(None))


def gamma_ms(chosen: random.Random, rate_per_s: float, burstiness: float) -> Iterator[float]:
    """Independent gaps of a gamma distribution, the first before the first arrival.

    Args:
        chosen: draws them.
        rate_per_s: one over their mean.
        burstiness: their coefficient of variation, the standard deviation over the mean. 1 is a Poisson
            process, more comes in bursts, less more evenly.
    """
    shape = burstiness**-2
    scale_ms = 1000 / rate_per_s / shape
    return accumulate(chosen.gammavariate(shape, scale_ms) for _ in repeat(None))


def trace_arrivals(trace: ArrivalTrace, seed: str, rate_per_s: float | None) -> Iterator[Arrival]:
    """The invocations of a trace: exactly as many in each minute as it says, at times that are uniform in it.

    After its last minute the trace begins anew.

    Args:
        trace: the counts.
        seed: of the times, and apart from them of the order in which functions come within a minute.
        rate_per_s: the mean to which the trace's time is stretched or squeezed, minutes and all; None leaves
            it as it is. Neither counts nor functions depend on it.
    """
    times, functions = random.Random(f"times {seed}"), random.Random(f"functions {seed}")
    minute_ms = _MS_PER_MINUTE * (1.0 if rate_per_s is None else trace.rate_per_s / rate_per_s)
    for number in count():
        minute = trace.minutes[number % len(trace.minutes)]
        for share, function in zip(_shares(times, minute), _functions(functions, minute), strict=True):
            yield Arrival((number + share) * minute_ms, function)


def _shares(times: random.Random, minute: TraceMinute) -> Iterator[float]:
    """How much of the minute is over at each invocation: uniform numbers from 0 to 1 in order.

    Drawn one by one: of n numbers in what is left, the least leaves the largest of n uniform ones of it,
    which is distributed as a uniform one to the power of 1 / n.
    """
    left = 1.0
    for num_left in range(sum(minute.counts), 0, -1):
        left *= (1.0 - times.random()) ** (1.0 / num_left)
        yield 1.0 - left


def _functions(functions: random.Random, minute: TraceMinute) -> Iterator[int]:
    """The function of each invocation: in an order by chance, each as often as the trace says."""
    urn = Urn(minute.counts)
    while len(urn):
        yield minute.functions[urn.draw(functions)]
