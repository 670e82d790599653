"""One line of an OpenAI Batch file -> one `RequestRow`.

    {"custom_id": …, "method": "POST", "url": "/v1/chat/completions" | "/v1/completions", "body": {…}}

The body's `model` names the adapter or the base: which, is found later. A deadline stands in the body's
`metadata`, whose values OpenAI's API has as strings. The format: https://platform.openai.com/docs/guides/batch
and the reference of both endpoints. What answers look like: `openai_output`.
"""

from __future__ import annotations

from collections.abc import Mapping

from caraserve_cli.core import BatchCall, RequestRow, SamplingParams
from caraserve_cli.errors import RowError
from caraserve_cli.requests.fields import Fields, Interval, excerpt
from caraserve_cli.requests.openai_fields import check_body_fields
from caraserve_cli.requests.openai_messages import parse_openai_messages
from caraserve_cli.requests.row import (
    BOUND_KEYS,
    SAMPLING_KEYS,
    RowDefaults,
    parse_arrival_ms,
    parse_bounds,
    parse_sampling,
)

CHAT_URL = "/v1/chat/completions"
COMPLETIONS_URL = "/v1/completions"

_LINE_KEYS = ("custom_id", "method", "url", "body")
_AT_LEAST_ONE = Interval(1)
_NUM_LOGPROBS = Interval(0, 20)
# Of /v1/completions, where max_tokens is left out; a chat goes on to the end of the context.
_COMPLETION_TOKENS = 16
_ENDLESS_TOKENS = 2**31 - 1
_TIME_KEYS = (*BOUND_KEYS, "arrival_ms")


def is_batch_line(values: Mapping[str, object]) -> bool:
    """Whether a line's object has a key of a Batch line; no other request has one."""
    return any(key in values for key in _LINE_KEYS)


def is_whole_batch_line(values: Mapping[str, object]) -> bool:
    """Whether it has all keys of one. Beside `--map` the keys are columns, which may be called `url` or
    `body` and mean something else."""
    return all(key in values for key in _LINE_KEYS)


def parse_batch_line(values: Mapping[str, object], line_number: int, defaults: RowDefaults) -> RequestRow:
    """Check one Batch line.

    Args:
        values: the line's object.
        line_number: where it stands in the file, from 1.
        defaults: values of the body's fields that the line leaves out or sets to null.

    Raises:
        RowError: INVALID_REQUEST, in the Batch form; with the custom_id where that much is known.
        OptionError: the run gives rows their arrival, and this one says its own.
    """
    custom_id = values.get("custom_id")
    known_id = custom_id if isinstance(custom_id, str) and custom_id else None
    try:
        return _parse(Fields(values, known_id), line_number, defaults)
    except RowError as error:
        raise RowError(error.code, error.message, known_id, is_batch=True) from None


def _parse(line: Fields, line_number: int, defaults: RowDefaults) -> RequestRow:
    line.allow_only(_LINE_KEYS)
    custom_id, method, url = _required(line, "custom_id"), _required(line, "method"), _required(line, "url")
    if method != "POST":
        raise line.wrong("method", '"POST"', method)
    if url not in (CHAT_URL, COMPLETIONS_URL):
        raise line.wrong("url", f'"{CHAT_URL}" or "{COMPLETIONS_URL}"', url)
    body = line.json_object("body")
    if not body:
        raise line.refused("body is missing or empty")
    try:
        return _parse_body(body, custom_id, line_number, defaults, is_chat=url == CHAT_URL)
    except RowError as error:
        raise RowError(error.code, f"body: {error.message}") from None


def _required(fields: Fields, key: str) -> str:
    value = fields.text(key)
    if value is None:
        raise fields.refused(f"{key} is missing")
    return value


def _parse_body(
    body: Mapping[str, object], custom_id: str, line_number: int, defaults: RowDefaults, *, is_chat: bool
) -> RequestRow:
    fields = Fields(body)
    check_body_fields(fields, body, is_chat=is_chat)
    metadata = fields.json_object("metadata")
    times = _times_in(fields, metadata)
    prompt, prompt_token_ids = (None, None) if is_chat else _parse_prompt(fields, body.get("prompt"))
    messages = parse_openai_messages(fields) if is_chat else None
    if is_chat and messages is None:
        raise fields.refused("messages is missing")
    model = _required(fields, "model")
    num_top_logprobs = _num_top_logprobs(fields, is_chat=is_chat)
    return RequestRow(
        id=custom_id,
        line=line_number,
        prompt=prompt,
        messages=messages,
        prompt_token_ids=prompt_token_ids,
        sampling=_parse_sampling(fields, body, defaults, num_top_logprobs, is_chat=is_chat),
        bounds=parse_bounds(times, defaults.bounds),
        arrival_ms=parse_arrival_ms(times, defaults, line_number),
        metadata=metadata,
        batch_call=BatchCall(is_chat=is_chat, model=model, num_top_logprobs=num_top_logprobs),
    )


def _parse_prompt(fields: Fields, prompt: object) -> tuple[str | None, tuple[int, ...] | None]:
    """A text, token ids, or a list with one of either."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        (prompt,) = prompt
    if isinstance(prompt, str):
        return Fields({"prompt": prompt}).text("prompt"), None
    if not isinstance(prompt, list):
        raise fields.wrong("prompt", "a string or a list of token ids", prompt)
    if any(isinstance(item, str | list) for item in prompt):
        raise fields.refused(
            f"prompt has {len(prompt)} prompts, and a line has one answer; write a line each"
        )
    token_ids = Fields({"prompt": prompt}).token_ids("prompt")
    if not token_ids:
        raise fields.refused("prompt is empty")
    return None, token_ids


def _num_top_logprobs(fields: Fields, *, is_chat: bool) -> int | None:
    """How many of the likeliest tokens are wanted at each position; None for no log-probabilities at all."""
    if not is_chat:
        return fields.integer("logprobs", None, _NUM_LOGPROBS)
    wanted = fields.boolean("logprobs", False)
    num_top = fields.integer("top_logprobs", None, _NUM_LOGPROBS)
    if num_top is not None and not wanted:
        raise fields.refused("top_logprobs needs logprobs to be true")
    return (num_top or 0) if wanted else None


def _parse_sampling(
    fields: Fields,
    body: Mapping[str, object],
    defaults: RowDefaults,
    num_top_logprobs: int | None,
    *,
    is_chat: bool,
) -> SamplingParams:
    values = {key: body[key] for key in SAMPLING_KEYS if key in body}
    if isinstance(seed := values.get("seed"), int) and -(2**63) <= seed < 0:
        values["seed"] = seed % 2**64  # OpenAI's are signed
    longest = _max_tokens(fields, is_chat=is_chat)
    if longest is None:
        of_endpoint = _ENDLESS_TOKENS if is_chat else _COMPLETION_TOKENS
        longest = of_endpoint if defaults.batch_max_tokens is None else defaults.batch_max_tokens
    # The engine gives those of the answer's own tokens where it gives any.
    values |= {
        "max_tokens": longest,
        "logprobs": None if num_top_logprobs is None else max(1, num_top_logprobs),
    }
    return parse_sampling(Fields(values), defaults.batch_sampling)


def _max_tokens(fields: Fields, *, is_chat: bool) -> int | None:
    longest = fields.integer("max_tokens", None, _AT_LEAST_ONE)
    newer = fields.integer("max_completion_tokens", None, _AT_LEAST_ONE) if is_chat else None
    if longest is not None and newer is not None:
        raise fields.refused("max_tokens and max_completion_tokens cannot both be set")
    return longest if newer is None else newer


def _times_in(fields: Fields, metadata: Mapping[str, object]) -> Fields:
    """The bounds and the arrival that the metadata carries, as numbers."""
    times: dict[str, object] = {}
    for key in _TIME_KEYS:
        value = metadata.get(key)
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise fields.refused(f"metadata.{key} must be a number, got {excerpt(value)}") from None
        times[key] = value
    return Fields(times)
