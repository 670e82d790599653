"""The tokens of an answer's text, whatever ended it, by both kinds of tokenizers."""

from __future__ import annotations

import pytest

from caraserve_cli.core import ColdStart, Completion, FinishReason, Request, Timings
from caraserve_cli.job.text_tokens import num_text_tokens
from tests.model.test_detokenizer import split, texts_on_the_way, tokenizer
from tests.model.tiny_tokenizers import Tokenizer

__all__ = ["tokenizer"]

ANSWER = " hello 😀 grüße the end"


def num_of_text(
    tokenizer: Tokenizer, token_ids: list[int], text: str, reason: FinishReason = FinishReason.STOP
) -> int:
    prompt_ids, _ = split(tokenizer, "the quick dog", ANSWER)
    completion = Completion(
        request=Request(id="r", line=1, prompt_token_ids=tuple(prompt_ids)),
        text=text,
        token_ids=token_ids,
        finish_reason=reason,
        cold_start=ColdStart.NONE,
        timings=Timings(arrival_ms=0.0),
    )
    return num_text_tokens(completion, tokenizer)


def test_the_token_that_ends_an_answer_is_none_of_its_text(tokenizer: Tokenizer) -> None:
    _, ids = split(tokenizer, "the quick dog", ANSWER)
    (_, eos) = tokenizer.encode_batch(["<eos>"])[0]
    assert num_of_text(tokenizer, [*ids, eos], ANSWER) == len(ids)
    assert num_of_text(tokenizer, [*ids, ids[0]], ANSWER) == len(ids), "one of `stop_token_ids`, with a text"
    assert num_of_text(tokenizer, [eos], "") == 0
    assert num_of_text(tokenizer, ids, ANSWER, FinishReason.LENGTH) == len(ids)


@pytest.mark.parametrize("stop", ["the end", "end", "grüße", " hello", "üß"])
def test_of_a_stop_string_no_token_is_left(tokenizer: Tokenizer, stop: str) -> None:
    """But one that it shares with the text."""
    prompt_ids, ids = split(tokenizer, "the quick dog", ANSWER)
    texts = texts_on_the_way(tokenizer, prompt_ids, ids, (stop,))
    text = texts[-1]
    assert text == ANSWER[: ANSWER.index(stop)]
    number = num_of_text(tokenizer, ids[: len(texts)], text)
    plain = texts_on_the_way(tokenizer, prompt_ids, ids[:number])
    assert (plain[-1] if plain else "").startswith(text)
    assert number == 0 or not plain[-2:-1] or len(plain[-2]) < len(text), "and no token fewer is enough"
