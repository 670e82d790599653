"""A finished answer -> its line in outputs.jsonl.

Knows the keys and their order; does not compute metrics and writes no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from caraserve_cli.core import Completion, TokenLogprobs

# `slo_attained` is true, false, or None where the request carries no bound; the others are milliseconds.
Metrics: TypeAlias = Mapping[str, float | bool | None]

_MS_DECIMALS = 3

# Times of an answer, in the order of their keys.
_TIME_KEYS = (
    "queue_ms",
    "ttft_ms",
    "tpot_ms",
    "latency_ms",
    "load_ms",
    "load_hidden_ms",
    "load_wait_ms",
    "disk_wait_ms",
    "room_wait_ms",
    "stalled_ms",
    "assisted_ms",
    "preempted_ms",
    "slack_ms",
)


def answer_row(completion: Completion, metrics: Metrics, include_token_ids: bool) -> dict[str, object]:
    """The output line of one completion, as an object with its keys in the documented order.

    Args:
        completion: the finished answer.
        metrics: `slo_attained` and the times of `_TIME_KEYS`; None where undefined.
        include_token_ids: whether the row has `token_ids`.

    Raises:
        KeyError: one of the metrics is missing.
    """
    request = completion.request
    row: dict[str, object] = {"id": request.id, "adapter": request.adapter, "text": completion.text}
    if include_token_ids:
        row["token_ids"] = list(completion.token_ids)
    row |= {
        "finish_reason": completion.finish_reason.value,
        "prompt_tokens": len(request.prompt_token_ids),
        "completion_tokens": len(completion.token_ids),
        "cold_start": completion.cold_start.value,
        **{key: _rounded(metrics[key]) for key in _TIME_KEYS},
        "failed_assists": completion.num_failed_assists,
        "slo_attained": metrics["slo_attained"],
    }
    if completion.replica is not None:
        row["replica"] = completion.replica
    if request.sampling.logprobs > 0:
        row["logprobs"] = [_logprobs_row(position) for position in completion.logprobs]
    if request.metadata:
        row["metadata"] = request.metadata
    return row


def _rounded(value_ms: float | None) -> float | None:
    return None if value_ms is None else round(value_ms, _MS_DECIMALS)


def _logprobs_row(position: TokenLogprobs) -> dict[str, object]:
    return {
        "token_id": position.token_id,
        "logprob": position.logprob,
        "top": [{"token_id": token_id, "logprob": logprob} for token_id, logprob in position.top],
    }
