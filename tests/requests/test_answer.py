"""The line of an answer, key by key."""

import orjson

from caraserve_cli.core import (
    ColdStart,
    Completion,
    FinishReason,
    Request,
    SamplingParams,
    Timings,
    TokenLogprobs,
)
from caraserve_cli.requests.answer import answer_row

METRICS = {
    "queue_ms": 0.12345,
    "ttft_ms": 10,
    "tpot_ms": None,
    "latency_ms": 20.00049,
    "load_ms": 7.5,
    "load_hidden_ms": 3.25,
    "load_wait_ms": 4.25,
    "disk_wait_ms": 1.5,
    "room_wait_ms": 0.0,
    "stalled_ms": 0.5,
    "assisted_ms": 2.0,
    "preempted_ms": 3.0,
    "slack_ms": -1.5,
    "slo_attained": True,
}


def completion(
    request: Request, text: str | None = "hi", logprobs: tuple[TokenLogprobs, ...] = ()
) -> Completion:
    return Completion(
        request=request,
        text=text,
        token_ids=(5, 6),
        finish_reason=FinishReason.STOP,
        cold_start=ColdStart.ON_DEMAND,
        timings=Timings(arrival_ms=0.0),
        num_failed_assists=1,
        logprobs=logprobs,
    )


def test_the_line_has_the_documented_keys_in_order() -> None:
    request = Request(id="r1", line=1, prompt_token_ids=(1, 2, 3), adapter="team/summarise")
    assert orjson.dumps(answer_row(completion(request), METRICS, include_token_ids=False)).decode() == (
        '{"id":"r1","adapter":"team/summarise","text":"hi","finish_reason":"stop","prompt_tokens":3,'
        '"completion_tokens":2,"cold_start":"on-demand","queue_ms":0.123,"ttft_ms":10,"tpot_ms":null,'
        '"latency_ms":20.0,"load_ms":7.5,"load_hidden_ms":3.25,"load_wait_ms":4.25,"disk_wait_ms":1.5,'
        '"room_wait_ms":0.0,"stalled_ms":0.5,"assisted_ms":2.0,"preempted_ms":3.0,"slack_ms":-1.5,'
        '"failed_assists":1,"slo_attained":true}'
    )


def test_what_was_asked_for_is_added() -> None:
    request = Request(
        id="r1", line=1, prompt_token_ids=(1,), sampling=SamplingParams(logprobs=2), metadata={"k": [1]}
    )
    logprobs = (TokenLogprobs(5, -0.5, ((5, -0.5), (9, -1.25))), TokenLogprobs(6, -2.0, ()))
    row = answer_row(
        completion(request, None, logprobs), METRICS | {"slo_attained": None}, include_token_ids=True
    )
    assert list(row) == [
        "id",
        "adapter",
        "text",
        "token_ids",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "cold_start",
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
        "failed_assists",
        "slo_attained",
        "logprobs",
        "metadata",
    ]
    assert (row["adapter"], row["text"], row["slo_attained"]) == (None, None, None)
    assert (row["token_ids"], row["metadata"]) == ([5, 6], {"k": [1]})
    assert row["logprobs"] == [
        {
            "token_id": 5,
            "logprob": -0.5,
            "top": [{"token_id": 5, "logprob": -0.5}, {"token_id": 9, "logprob": -1.25}],
        },
        {"token_id": 6, "logprob": -2.0, "top": []},
    ]


def test_logprobs_that_were_not_asked_for_stay_out() -> None:
    request = Request(id="r1", line=1, prompt_token_ids=(1,))
    row = answer_row(
        completion(request, logprobs=(TokenLogprobs(5, -0.5, ()),)), METRICS, include_token_ids=False
    )
    assert "logprobs" not in row
