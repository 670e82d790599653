"""OpenAI Batch lines: which are taken, with OpenAI's defaults, and what is refused by which name."""

from __future__ import annotations

import orjson
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParams
from openai.types.completion_create_params import CompletionCreateParamsBase as CompletionParams

from caraserve_cli.core import BatchCall, Bounds, RequestRow, SamplingParams
from caraserve_cli.requests.openai_fields import (
    HARMLESS,
    HONOURED_OF_CHATS,
    HONOURED_OF_COMPLETIONS,
    REFUSED,
)
from caraserve_cli.requests.row import RowDefaults
from caraserve_cli.requests.source import RawLine
from caraserve_cli.requests.stream import RejectedRow, RowStream

CHAT = {"model": "team/a", "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": "team/a", "prompt": "hi"}
CHAT_URL, COMPLETIONS_URL = "/v1/chat/completions", "/v1/completions"


def parse(
    body: object, url: str = CHAT_URL, defaults: RowDefaults | None = None, **line: object
) -> RequestRow | RejectedRow:
    values = {"custom_id": "c-1", "method": "POST", "url": url, "body": body} | line
    (row,) = RowStream([RawLine(4, orjson.dumps(values))], defaults or RowDefaults())
    return row


def taken(body: object, url: str = CHAT_URL, defaults: RowDefaults | None = None) -> RequestRow:
    row = parse(body, url, defaults)
    assert isinstance(row, RequestRow), row
    return row


def test_a_chat_has_openais_defaults() -> None:
    row = taken(CHAT)
    assert (row.id, row.line, row.adapter) == ("c-1", 4, None)
    assert row.batch_call == BatchCall(is_chat=True, model="team/a")
    assert row.sampling == SamplingParams(temperature=1.0, max_tokens=2**31 - 1)


def test_a_completion_has_openais_defaults() -> None:
    row = taken(COMPLETION, COMPLETIONS_URL)
    assert row.prompt == "hi"
    assert row.sampling == SamplingParams(temperature=1.0, max_tokens=16)


def test_every_field_that_is_honoured() -> None:
    body = CHAT | {
        "max_completion_tokens": 5,
        "temperature": 0,
        "top_p": 0.5,
        "seed": -1,
        "stop": ["a", "b"],
        "logprobs": True,
        "top_logprobs": 3,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "top_k": 4,
        "metadata": {"deadline_ms": "2000", "ttft_slo_ms": 5, "arrival_ms": "7.5", "note": "x"},
    }
    row = taken(body)
    assert row.sampling == SamplingParams(
        max_tokens=5,
        temperature=0,
        top_p=0.5,
        seed=2**64 - 1,
        stop=("a", "b"),
        logprobs=3,
        presence_penalty=1,
        frequency_penalty=-1,
        top_k=4,
    )
    assert (row.bounds, row.arrival_ms) == (Bounds(deadline_ms=2000, ttft_slo_ms=5), 7.5)
    assert row.metadata["note"] == "x"
    assert row.batch_call == BatchCall(is_chat=True, model="team/a", num_top_logprobs=3)


@pytest.mark.parametrize(
    ("prompt", "text", "token_ids"),
    [(["hi"], "hi", None), ([1, 2], None, (1, 2)), ([[1, 2]], None, (1, 2)), ([0], None, (0,))],
)
def test_forms_of_a_prompt(prompt: object, text: str | None, token_ids: tuple[int, ...] | None) -> None:
    row = taken(COMPLETION | {"prompt": prompt}, COMPLETIONS_URL)
    assert (row.prompt, row.prompt_token_ids) == (text, token_ids)


def chat_of(*messages: object) -> dict[str, object]:
    return {"model": "m", "messages": list(messages)}


def test_roles_are_those_of_templates() -> None:
    given = [{"role": role, "content": "x"} for role in ("developer", "system", "user", "assistant")]
    row = taken(chat_of(*given, {"role": "assistant", "content": "y", "tool_calls": [], "refusal": None}))
    assert row.messages is not None
    assert [each["role"] for each in row.messages] == ["system", "system", "user", "assistant", "assistant"]
    assert row.messages[-1] == {"role": "assistant", "content": "y"}


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            {"role": "tool", "content": "3", "tool_call_id": "c"},
            'messages[1].role must be "developer", "system", "user" or "assistant", got "tool"',
        ),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"id": "c"}]},
            "messages[1].tool_calls cannot be honoured: only role and content are; leave it out",
        ),
        (
            {"role": "user", "content": "hi", "name": "Ann"},
            "messages[1].name cannot be honoured: only role and content are; leave it out",
        ),
    ],
)
def test_of_a_message_nothing_is_passed_over(message: object, told: str) -> None:
    row = parse(chat_of({"role": "user", "content": "hi"}, message))
    assert isinstance(row, RejectedRow)
    assert row.message == f"body: {told}"


def test_options_come_before_openais_defaults() -> None:
    defaults = RowDefaults(batch_sampling=SamplingParams(temperature=0.25), batch_max_tokens=9)
    assert taken(CHAT, defaults=defaults).sampling == SamplingParams(temperature=0.25, max_tokens=9)


def test_every_field_of_openais_api_is_judged() -> None:
    """A new field of the API has to be put into one of the tables."""
    known = HARMLESS | REFUSED.keys()
    assert set(ChatParams.__annotations__) - known - HONOURED_OF_CHATS == set()
    assert set(CompletionParams.__annotations__) - known - HONOURED_OF_COMPLETIONS == set()


@pytest.mark.parametrize("key", REFUSED)
def test_what_cannot_be_honoured_is_refused_by_name(key: str) -> None:
    neutral, reason = REFUSED[key]
    for value in (None, *neutral):
        taken(CHAT | {key: value})
    row = parse(CHAT | {key: {"something": 1}})
    assert isinstance(row, RejectedRow)
    assert row.message.startswith(
        f"body: {key} is an object, which cannot be honoured: {reason}; leave it out"
    )
    assert (row.request_id, row.line, row.is_batch) == ("c-1", 4, True)


def test_a_refusal_says_which_values_are_taken() -> None:
    for key, instead in (
        ("response_format", '; leave it out, or give {"type":"text"}'),
        ("tool_choice", '; leave it out, or give "none" or "auto"'),
        ("audio", "; leave it out"),
    ):
        row = parse(CHAT | {key: {"type": "json_object"}})
        assert isinstance(row, RejectedRow)
        assert row.message.endswith(instead), row.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (CHAT | {"temprature": 1}, 'body: unknown key "temprature"; did you mean "temperature"?'),
        (CHAT | {"n": True}, "body: n is true, which cannot be honoured"),
        (CHAT | {"max_tokens": 1, "max_completion_tokens": 1}, "body: max_tokens and max_completion_tokens"),
        (CHAT | {"max_completion_tokens": 0}, "body: max_completion_tokens must be an integer"),
        (CHAT | {"top_logprobs": 1}, "body: top_logprobs needs logprobs"),
        (
            CHAT | {"metadata": {"deadline_ms": "soon"}},
            'body: metadata.deadline_ms must be a number, got "soon"',
        ),
        ({"model": "m"}, "body: messages is missing"),
        ({"messages": CHAT["messages"]}, "body: model is missing"),
        ({}, "body is missing or empty"),
        ([], "body must be an object"),
    ],
)
def test_wrong_bodies(body: object, message: str) -> None:
    row = parse(body)
    assert isinstance(row, RejectedRow)
    assert row.message.startswith(message), row.message


def test_wrong_lines() -> None:
    for key, value, message in (
        ("url", "/v1/embeddings", 'url must be "/v1/chat/completions" or "/v1/completions"'),
        ("method", "GET", 'method must be "POST", got "GET"'),
        ("custom_id", None, "custom_id is missing"),
        ("prompt", "x", 'unknown key "prompt"'),
    ):
        row = parse(CHAT, **{key: value})
        assert isinstance(row, RejectedRow)
        assert row.message.startswith(message), row.message
        assert row.is_batch
    two = parse(COMPLETION | {"prompt": ["a", "b"]}, COMPLETIONS_URL)
    assert isinstance(two, RejectedRow)
    assert "prompt has 2 prompts" in two.message
