"""What CaraServe does with every field of an OpenAI request's body: honour it, pass over it, or refuse it.

A field that is in none of the tables is refused by name, so that a newer API never changes an answer in
silence. Knows names and values, not what the honoured ones mean: see `openai_batch`. The fields are those of
openai-python 3.57's `CompletionCreateParams`, of chats and of completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import orjson

from caraserve_cli.requests.fields import Fields, excerpt

_COMMON: Final = frozenset(
    {"model", "metadata", "max_tokens", "temperature", "top_p", "seed", "stop", "logprobs"}
    | {"presence_penalty", "frequency_penalty"}
    # Not OpenAI's: our own words for what its API lacks, as in vLLM's server.
    | {"top_k", "min_p", "repetition_penalty", "stop_token_ids", "ignore_eos"}
)
HONOURED_OF_CHATS: Final = _COMMON | {"messages", "max_completion_tokens", "top_logprobs"}
HONOURED_OF_COMPLETIONS: Final = _COMMON | {"prompt"}

# Who asks, and hints for a cache: no answer depends on them.
HARMLESS: Final = frozenset(
    {"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
    # Only read where there are tools, which are refused.
    | {"parallel_tool_calls"}
)

# Refused unless null or one of these values, which ask for nothing; and why.
REFUSED: Final[Mapping[str, tuple[tuple[object, ...], str]]] = {
    "n": ((1,), "a line has one answer, and another is a line with another custom_id"),
    "best_of": ((1,), "a line has one answer"),
    "stream": ((False,), "answers are written when they are finished"),
    "stream_options": ((), "answers are written when they are finished"),
    "store": ((False,), "nothing is stored beside the output folder"),
    "service_tier": (("auto", "default"), "there is one kind of service"),
    "tools": (([],), "tools are not served"),
    "tool_choice": (("none", "auto"), "tools are not served"),
    "functions": (([],), "functions are not served"),
    "function_call": (("none", "auto"), "functions are not served"),
    "response_format": (({"type": "text"},), "answers are not held to a format"),
    "logit_bias": (({},), "tokens are not biased"),
    "modalities": ((["text"],), "answers are text"),
    "audio": ((), "answers are text"),
    "prediction": ((), "predicted outputs are not served"),
    "web_search_options": ((), "the web is not searched"),
    "moderation": ((), "answers are not moderated"),
    "reasoning_effort": (("none",), "how long a model reasons is its own affair"),
    "verbosity": (("medium",), "how much a model says is its own affair"),
    "echo": ((False,), "an answer does not repeat its prompt"),
    "suffix": (("",), "text is not inserted before a suffix"),
}


def check_body_fields(fields: Fields, body: Mapping[str, object], *, is_chat: bool) -> None:
    """Refuse what the body asks for and nobody does.

    Raises:
        RowError: INVALID_REQUEST, naming the field.
    """
    honoured = HONOURED_OF_CHATS if is_chat else HONOURED_OF_COMPLETIONS
    fields.allow_only(honoured | HARMLESS | REFUSED.keys())
    for key, (neutral_values, reason) in REFUSED.items():
        value = body.get(key)
        if value is not None and not any(_is_same(value, neutral) for neutral in neutral_values):
            instead = f"leave it out{_given(neutral_values)}"
            raise fields.refused(f"{key} is {excerpt(value)}, which cannot be honoured: {reason}; {instead}")


def _given(values: tuple[object, ...]) -> str:
    shown = " or ".join(orjson.dumps(value).decode() for value in values)
    return f", or give {shown}" if shown else ""


def _is_same(value: object, neutral: object) -> bool:
    """Unlike `==`, true is not 1 here."""
    return type(value) is type(neutral) and value == neutral
