"""One line of a requests file -> one `RequestRow`: the request schema and every check it takes.

Knows no files, no tokenizer and no adapters: whether an adapter exists or a prompt fits is found later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import orjson

from caraserve_cli.core import Bounds, RequestRow, SamplingParams
from caraserve_cli.errors import OptionError, RowError, RowErrorCode
from caraserve_cli.requests.fields import Fields, Interval, excerpt
from caraserve_cli.requests.messages import parse_messages

PROMPT_KEYS = ("prompt", "messages", "prompt_token_ids")
SAMPLING_KEYS = tuple(SamplingParams.__dataclass_fields__)
BOUND_KEYS = tuple(Bounds.__dataclass_fields__)
REQUEST_KEYS = ("id", *PROMPT_KEYS, "adapter", *SAMPLING_KEYS, *BOUND_KEYS, "arrival_ms", "metadata")

# OpenAI's defaults where they differ from ours.
OPENAI_SAMPLING = SamplingParams(temperature=1.0)

_NOT_NEGATIVE = Interval(0)
_POSITIVE = Interval(0, above_low=True)
_AT_LEAST_ONE = Interval(1)
_FRACTION = Interval(0, 1)
_SHARE = Interval(0, 1, above_low=True)
_PENALTY = Interval(-2, 2)
_NUM_LOGPROBS = Interval(0, 20)
_SEED = Interval(0, 2**64 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDefaults:
    """What a row gets for a key that it leaves out.

    `arrival_ms` is None where rows may say it, 0 if they do not; else no row may say it. `batch_sampling` and
    `batch_max_tokens` are those of OpenAI Batch lines; None there is what OpenAI's endpoint has."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    batch_sampling: SamplingParams = OPENAI_SAMPLING
    batch_max_tokens: int | None = None
    bounds: Bounds = field(default_factory=Bounds)
    adapter: str | None = None
    arrival_ms: float | None = None


def parse_row(
    values: Mapping[str, object], line_number: int, defaults: RowDefaults, make_id: Callable[[], str]
) -> RequestRow:
    """Check one line in our own form.

    Args:
        values: the line's object.
        line_number: where it stands in the file, from 1.
        defaults: values of the keys that the line leaves out or sets to null.
        make_id: called, last of all, for a valid row that carries no id.

    Raises:
        RowError: INVALID_REQUEST; with the row's id where that much is known.
        OptionError: the run gives rows their arrival, and this one says its own.
    """
    raw_id = values.get("id")
    fields = Fields(values, raw_id if isinstance(raw_id, str) and raw_id else None)
    fields.allow_only(REQUEST_KEYS)
    if raw_id is not None and fields.request_id is None:
        hint = f' (write "{raw_id}")' if type(raw_id) is int else ""
        raise fields.wrong("id", "a non-empty string", raw_id, hint)
    prompt, messages, prompt_token_ids = _parse_prompt(fields)
    adapter = fields.text("adapter") if fields.has_key("adapter") else defaults.adapter
    sampling = parse_sampling(fields, defaults.sampling)
    bounds = parse_bounds(fields, defaults.bounds)
    arrival_ms = parse_arrival_ms(fields, defaults, line_number)
    metadata = fields.json_object("metadata")
    return RequestRow(
        id=fields.request_id or make_id(),
        line=line_number,
        prompt=prompt,
        messages=messages,
        prompt_token_ids=prompt_token_ids,
        adapter=adapter,
        sampling=sampling,
        bounds=bounds,
        arrival_ms=arrival_ms,
        metadata=metadata,
    )


def parse_sampling(fields: Fields, default: SamplingParams) -> SamplingParams:
    """The sampling keys of an object, checked.

    Raises:
        RowError: INVALID_REQUEST, naming the key.
    """
    stop = fields.strings("stop")
    stop_token_ids = fields.token_ids("stop_token_ids")
    return SamplingParams(
        max_tokens=fields.integer("max_tokens", default.max_tokens, _AT_LEAST_ONE),
        temperature=fields.number("temperature", default.temperature, _NOT_NEGATIVE),
        top_p=fields.number("top_p", default.top_p, _SHARE),
        top_k=fields.integer("top_k", default.top_k, _NOT_NEGATIVE),
        min_p=fields.number("min_p", default.min_p, _FRACTION),
        seed=fields.integer("seed", default.seed, _SEED),
        stop=default.stop if stop is None else stop,
        stop_token_ids=default.stop_token_ids if stop_token_ids is None else stop_token_ids,
        ignore_eos=fields.boolean("ignore_eos", default.ignore_eos),
        repetition_penalty=fields.number("repetition_penalty", default.repetition_penalty, _POSITIVE),
        presence_penalty=fields.number("presence_penalty", default.presence_penalty, _PENALTY),
        frequency_penalty=fields.number("frequency_penalty", default.frequency_penalty, _PENALTY),
        logprobs=fields.integer("logprobs", default.logprobs, _NUM_LOGPROBS),
    )


def parse_bounds(fields: Fields, default: Bounds) -> Bounds:
    """The bounds of an object, checked.

    Raises:
        RowError: INVALID_REQUEST, naming the key.
    """
    return Bounds(
        deadline_ms=fields.number("deadline_ms", default.deadline_ms, _POSITIVE),
        ttft_slo_ms=fields.number("ttft_slo_ms", default.ttft_slo_ms, _POSITIVE),
        tpot_slo_ms=fields.number("tpot_slo_ms", default.tpot_slo_ms, _POSITIVE),
    )


def parse_arrival_ms(fields: Fields, defaults: RowDefaults, line_number: int) -> float:
    """When a row arrives.

    Raises:
        RowError: INVALID_REQUEST, naming the key.
        OptionError: the run gives rows their arrival, and this one says its own.
    """
    arrival_ms = fields.number("arrival_ms", defaults.arrival_ms or 0.0, _NOT_NEGATIVE)
    if defaults.arrival_ms is not None and "arrival_ms" in fields:
        raise OptionError(
            f"--rate, --arrivals: line {line_number} of the requests has an arrival_ms of its own; "
            "leave out either that key in all rows, or these options"
        )
    return arrival_ms


# How a file begins that is one JSON text, and not one a line.
_OPENINGS = ("{", "[", "[{")


def decode_line(line: bytes) -> dict[str, object]:
    """The JSON object in one line, which comes without its end.

    Raises:
        RowError: INVALID_UTF8, INVALID_JSON or INVALID_REQUEST.
    """
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        message = f"not valid UTF-8 at byte {error.start + 1} of the line"
        raise RowError(RowErrorCode.INVALID_UTF8, message) from None
    try:
        values = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        message = f"not valid JSON at character {error.pos + 1} of the line: {error.msg}"
        if text.strip() in _OPENINGS:
            message += "; a request stands on one line"
        raise RowError(RowErrorCode.INVALID_JSON, message) from None
    if not isinstance(values, dict):
        message = f"a request must be a JSON object, got {excerpt(values)}"
        if isinstance(values, list):
            message += "; write an object a line, and no list around them"
        raise RowError(RowErrorCode.INVALID_REQUEST, message)
    return values


_Prompt = tuple[str | None, tuple[Mapping[str, object], ...] | None, tuple[int, ...] | None]


def _parse_prompt(fields: Fields) -> _Prompt:
    given = [key for key in PROMPT_KEYS if key in fields]
    if len(given) != 1:
        raise fields.refused(
            f"needs exactly one of {', '.join(PROMPT_KEYS)}; got {' and '.join(given) or 'none'}"
        )
    prompt = fields.text("prompt")
    messages = parse_messages(fields)
    prompt_token_ids = fields.token_ids("prompt_token_ids")
    if prompt_token_ids == ():
        raise fields.refused("prompt_token_ids is empty")
    return prompt, messages, prompt_token_ids
