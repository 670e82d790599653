"""The formulas of every number that a report shows, each written once.

Knows times and counts only: no files, no JSON, no rendering. A value that is not defined is None, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from caraserve_cli.core import Bounds, Completion

# What report.json says about its own words, next to the code that computes them.
DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "startup_s": "from the start of the command until the engine could take its first request, without "
        "the wait for rows; duration_s is from then on",
        "queue_ms": "first scheduled - arrival",
        "ttft_ms": "first token - arrival",
        "tpot_ms": "(last token - first token) / (output tokens - 1); null for one token",
        "latency_ms": "last token - arrival",
        "submitted_late": "requests of this session that stood in the file behind so many that arrive later "
        "that they were read after their own arrival; queue_ms includes that wait",
        "slo_attainment": "requests that met every bound they carry / all requests that carry one; "
        "failed requests are misses",
        "deadline_exceeded": "failed requests that were dropped when their deadline had passed",
        "goodput": "requests that met every bound they carry, per second; null when none carries one",
        "prefill_tokens": "computed of prompts, those computed again after a preemption included",
        "decode_tokens": "computed of answers after their first tokens, each of which a prompt yields",
        "dropped_tokens": "computed for answers that turned out to have ended, and in no other count",
        "memory_retries": "steps that the device's memory did not hold and that were tried again, smaller",
        "adapter_load_ms": "on the host, and of copying to the device, "
        "which goes on beneath the steps that need it",
        "load_ms": "the adapter's way to the device, from when its copying began (that of all adapters that "
        "are copied together) until all of it was there; null where nothing was on its way when the request "
        "was admitted, or still was when it ended; requests that share a load have equal ones",
        "load_wait_ms": "the part of ttft_ms in which the request waited for the copies: passed over by "
        "plans, or in a step that stood still for them",
        "load_hidden_ms": "load_ms - load_wait_ms, not below 0: the part that went on beneath what the "
        "request waited for anyway, or beneath its own prefill",
        "disk_wait_ms, room_wait_ms": "the part of ttft_ms in which plans passed the request over, for its "
        "adapter was being read into host memory (until it was there, not until the next plan), or had no "
        "room in the device's pool",
        "stalled_ms": "how long steps that computed the request stood still for the adapters of others",
        "preempted_ms": "how long the request was back in the queue after it had been preempted",
        "slack_ms": "deadline_ms - latency_ms: negative where the deadline was missed; null without one",
        "assisted_ms": "duration of the steps in which CPU workers were to compute a part of the request",
        "hit_rate": "requests whose adapter was on the device when they were admitted / answered requests "
        "that name one; null on a CPU, to which nothing is copied",
        "bytes_moved": "of adapters, to the device, with the tables that say where they lie; moves within "
        "the device are not counted",
        "assists": "chunks of prompts of which CPU workers were to compute a part; failed_assists came too "
        "late and were computed again on the device",
        "spared_loads": "answers of one token, or of one more after a preemption, whose adapters were not "
        "loaded for them: CPU workers computed all of their prompts",
        "lost_workers": "CPU workers that died, as far as was noticed when the next assist began",
        "stall_ms": "how long steps stood still for adapters on their way; others_stalled_ms counts that "
        "time once for each request in the step that uses none of these",
        "exact_match": "answers equal to the string metadata.expected, outer white space aside",
        "p50, p90, p95, p99": "the smallest value that at least that share of the requests does not exceed",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMetrics:
    """What one answered request experienced.

    `tpot_ms` is None for an answer of one token, `slo_attained` and `slack_ms` for a request without bounds
    or deadline, `load_ms` and
    `load_hidden_ms` where no copying is known of; DEFINITIONS says what they are.
    """

    queue_ms: float
    ttft_ms: float
    tpot_ms: float | None
    latency_ms: float
    load_ms: float | None
    load_hidden_ms: float | None
    load_wait_ms: float
    disk_wait_ms: float
    room_wait_ms: float
    stalled_ms: float
    assisted_ms: float
    preempted_ms: float
    slack_ms: float | None
    slo_attained: bool | None


def measure(completion: Completion) -> RequestMetrics:
    """The metrics of a finished answer, from its raw times and its request's bounds.

    Raises:
        ValueError: a time is missing, so the answer is not finished.
    """
    timings = completion.timings
    scheduled, first, last = timings.first_scheduled_ms, timings.first_token_ms, timings.last_token_ms
    if scheduled is None or first is None or last is None:
        raise ValueError(f"request '{completion.request.id}' is not finished: {timings}")
    ttft_ms = first - timings.arrival_ms
    tpot_ms = time_per_output_token_ms(first, last, len(completion.token_ids))
    latency_ms = last - timings.arrival_ms
    deadline_ms = completion.request.bounds.deadline_ms
    load_ms = None if timings.load is None else timings.load.ms
    return RequestMetrics(
        queue_ms=scheduled - timings.arrival_ms,
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
        latency_ms=latency_ms,
        load_ms=load_ms,
        load_hidden_ms=None if load_ms is None else max(0.0, load_ms - timings.load_wait_ms),
        load_wait_ms=timings.load_wait_ms,
        disk_wait_ms=timings.disk_wait_ms,
        room_wait_ms=timings.room_wait_ms,
        stalled_ms=timings.stalled_ms,
        assisted_ms=timings.assisted_ms,
        preempted_ms=timings.preempted_ms,
        slack_ms=None if deadline_ms is None else deadline_ms - latency_ms,
        slo_attained=attains_slo(
            completion.request.bounds, ttft_ms=ttft_ms, tpot_ms=tpot_ms, latency_ms=latency_ms
        ),
    )


def time_per_output_token_ms(first_token_ms: float, last_token_ms: float, num_tokens: int) -> float | None:
    """Mean gap between the tokens of an answer; None when it has no gap."""
    if num_tokens < 2:
        return None
    return (last_token_ms - first_token_ms) / (num_tokens - 1)


def attains_slo(bounds: Bounds, *, ttft_ms: float, tpot_ms: float | None, latency_ms: float) -> bool | None:
    """Whether every bound that is carried is met; None when none is. An undefined TPOT meets any bound."""
    carried = [
        (measured, bound)
        for measured, bound in (
            (latency_ms, bounds.deadline_ms),
            (ttft_ms, bounds.ttft_slo_ms),
            (tpot_ms, bounds.tpot_slo_ms),
        )
        if bound is not None
    ]
    if not carried:
        return None
    return all(measured is None or measured <= bound for measured, bound in carried)


def share(part: float, whole: float) -> float | None:
    """`part / whole`: SLO attainment, accuracy, a mean; None when the whole is nothing."""
    return part / whole if whole else None


def per_second(count: float, duration_s: float) -> float | None:
    """Throughput or goodput; None when no time has passed."""
    return count / duration_s if duration_s > 0 else None


def is_exact_match(text: str, expected: str) -> bool:
    """Whether an answer is the expected one, white space around either aside."""
    return text.strip() == expected.strip()
