"""Answers and errors of OpenAI Batch lines, in the form of OpenAI's output and error files.

    {"id": …, "custom_id": …, "response": {status_code, request_id, body}, "error": null, "caraserve": {…}}

The body is a `ChatCompletion` or a `Completion`. `caraserve` holds what a line of ours has beside: the
adapter, times, the attained SLO; all that a report and a resumed run need. A line that cannot be answered has
both a response with the body of an API error, and `error`; one that ran out of time has no response, and the
error `batch_expired`. The format: https://platform.openai.com/docs/api-reference/batch/request-output.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import TypeAlias

from caraserve_cli.core import BatchCall, Completion, TokenLogprobs
from caraserve_cli.errors import RowErrorCode

# A token id -> its text, in which bytes that are no UTF-8 are U+FFFD.
TokenText: TypeAlias = Callable[[int], str]
Row: TypeAlias = dict[str, object]

_EXTENSION = "caraserve"
_EXPIRED_CODES = ("deadline_exceeded",)
_HTTP_OK, _HTTP_BAD_REQUEST, _HTTP_NOT_FOUND = 200, 400, 404
_REPLACEMENT = "\ufffd"


def batch_answer_row(native_row: Mapping[str, object], completion: Completion, token_text: TokenText) -> Row:
    """The output line of one completion whose request has a `batch_call`.

    Args:
        native_row: its line in our own form (`answer.answer_row`).
        completion: the finished answer; its log-probabilities are those of the text's tokens.
        token_text: the text of a token, for log-probabilities.
    """
    call = completion.request.batch_call
    assert call is not None
    text = completion.text or ""
    choice: Row = {"index": 0, "finish_reason": completion.finish_reason.value}
    if call.is_chat:
        choice |= {
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _chat_logprobs(completion, call, token_text),
        }
    else:
        choice |= {"text": text, "logprobs": _completion_logprobs(completion, call, token_text)}
    digest = _digest(completion.request.id)
    body = {
        "id": f"{'chatcmpl' if call.is_chat else 'cmpl'}-{digest}",
        "object": "chat.completion" if call.is_chat else "text_completion",
        "created": int(time.time()),
        "model": call.model,
        "choices": [choice],
        "usage": _usage(completion),
        "system_fingerprint": None,
    }
    response = {"status_code": _HTTP_OK, "request_id": f"req_{digest}", "body": body}
    beside = {key: value for key, value in native_row.items() if key not in ("id", "text", "logprobs")}
    return {**_head(completion.request.id), "response": response, "error": None, _EXTENSION: beside}


def error_row(line: int, request_id: str | None, code: str, message: str, *, is_batch: bool) -> Row:
    """The line in errors.jsonl of a row that is rejected or failed, in our own form or in Batch's."""
    native: Row = {"line": line, "id": request_id, "code": code, "message": message}
    if not is_batch:
        return native
    beside = {"line": line, "code": code}
    if code in _EXPIRED_CODES:
        error = {"code": "batch_expired", "message": message}
        return {**_head(request_id), "response": None, "error": error, _EXTENSION: beside}
    is_unknown = code == RowErrorCode.UNKNOWN_ADAPTER
    body = {
        "error": {"message": message, "type": "invalid_request_error", "param": None, "code": code},
    }
    response = {
        "status_code": _HTTP_NOT_FOUND if is_unknown else _HTTP_BAD_REQUEST,
        "request_id": f"req_{_digest(request_id)}",
        "body": body,
    }
    error = {"code": code, "message": message}
    return {**_head(request_id), "response": response, "error": error, _EXTENSION: beside}


def native_form(row: Mapping[str, object]) -> Mapping[str, object]:
    """A line of outputs.jsonl or errors.jsonl in our own form, without log-probabilities.

    Raises:
        KeyError, IndexError, TypeError: this program did not write it.
    """
    beside = row.get(_EXTENSION)
    if not isinstance(beside, Mapping):
        return row
    native: Row = {"id": row["custom_id"], **beside}
    if isinstance(error := row["error"], Mapping):
        return native | {"message": error["message"]}
    return native | {"text": _text(row["response"])}


def _text(response: object) -> object:
    if not isinstance(response, Mapping):
        raise TypeError("response")
    choice = response["body"]["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def _head(custom_id: str | None) -> Row:
    return {"id": f"batch_req_{_digest(custom_id)}", "custom_id": custom_id}


def _digest(custom_id: str | None) -> str:
    return blake2b((custom_id or "").encode(), digest_size=12).hexdigest()


def _usage(completion: Completion) -> Row:
    num_prompt, num_output = len(completion.request.prompt_token_ids), len(completion.token_ids)
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_output,
        "total_tokens": num_prompt + num_output,
        "prompt_tokens_details": {"cached_tokens": completion.num_cached_tokens},
    }


def _chat_logprobs(completion: Completion, call: BatchCall, token_text: TokenText) -> Row | None:
    if call.num_top_logprobs is None:
        return None
    content = [
        {
            **_chat_token(position.token_id, position.logprob, token_text),
            "top_logprobs": [_chat_token(*one, token_text) for one in position.top[: call.num_top_logprobs]],
        }
        for position in completion.logprobs
    ]
    return {"content": content, "refusal": None}


def _chat_token(token_id: int, logprob: float, token_text: TokenText) -> Row:
    text = token_text(token_id)
    # A part of a character has bytes that its text does not tell.
    encoded = None if _REPLACEMENT in text else list(text.encode())
    return {"token": text, "logprob": logprob, "bytes": encoded}


def _completion_logprobs(completion: Completion, call: BatchCall, token_text: TokenText) -> Row | None:
    if call.num_top_logprobs is None:
        return None
    tokens = [token_text(position.token_id) for position in completion.logprobs]
    offsets = [0]
    for token in tokens[:-1]:
        offsets.append(offsets[-1] + len(token))
    return {
        "tokens": tokens,
        "token_logprobs": [position.logprob for position in completion.logprobs],
        "top_logprobs": [
            _top(position, call.num_top_logprobs, token_text) for position in completion.logprobs
        ],
        "text_offset": offsets[: len(tokens)],
    }


def _top(position: TokenLogprobs, num_top: int, token_text: TokenText) -> Row:
    return {token_text(token_id): logprob for token_id, logprob in position.top[:num_top]}
