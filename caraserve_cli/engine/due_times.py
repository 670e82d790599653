"""By when a request must be taken so that its first token and its last one come in time. Pure arithmetic on
the request's bounds and on predictions that are given.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from caraserve_cli.core import Sequence


class StartTimes(NamedTuple):
    """Times on the run's clock.

    Attributes:
        latest_ms: the latest start that meets the TTFT bound and the deadline, if the answer becomes as long
            as it may: those that wait are taken in this order.
        last_chance_ms: the latest start that may meet both. An answer that can end early is taken for one
            token here; whoever starts later is lost for certain, as far as predictions are right.
        num_chunks: steps that compute the prompt, at least.
    """

    latest_ms: float
    last_chance_ms: float
    num_chunks: int


def start_times(
    sequence: Sequence, *, prefill_ms: float, token_ms: float, num_chunks: int
) -> StartTimes | None:
    """When a sequence must start; None if no bound says it, as one on TPOT does not.

    Args:
        sequence: as it was queued.
        prefill_ms: from its start to its first token.
        token_ms: of each further token.
        num_chunks: as in `StartTimes`.
    """
    bounds, arrival_ms = sequence.request.bounds, sequence.timings.arrival_ms
    if bounds.ttft_slo_ms is None and bounds.deadline_ms is None:
        return None
    ttft_ms = math.inf if bounds.ttft_slo_ms is None else bounds.ttft_slo_ms
    deadline_ms = math.inf if bounds.deadline_ms is None else bounds.deadline_ms
    answer_ms = token_ms * (sequence.max_output_tokens - 1)
    least_ms = answer_ms if has_known_length(sequence) else 0.0
    begin_ms = arrival_ms - prefill_ms
    return StartTimes(
        begin_ms + min(ttft_ms, deadline_ms - answer_ms),
        begin_ms + min(ttft_ms, deadline_ms - least_ms),
        num_chunks,
    )


def has_known_length(sequence: Sequence) -> bool:
    """Whether its answer ends at its longest and nowhere else."""
    sampling = sequence.request.sampling
    return sampling.ignore_eos and not sampling.stop and not sampling.stop_token_ids


def is_in_time(sequence: Sequence, now_ms: float) -> bool:
    """Whether a sequence has not missed its TTFT bound or its deadline yet: what one more loses counts no
    more."""
    bounds, timings = sequence.request.bounds, sequence.timings
    if bounds.deadline_ms is not None and now_ms > timings.arrival_ms + bounds.deadline_ms:
        return False
    if bounds.ttft_slo_ms is None:
        return True
    first_ms = now_ms if timings.first_token_ms is None else timings.first_token_ms
    return first_ms <= timings.arrival_ms + bounds.ttft_slo_ms
