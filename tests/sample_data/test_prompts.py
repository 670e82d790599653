"""Prompts as text, as tokens, and as the tokenizer and its chat template render them."""

from __future__ import annotations

from itertools import repeat
from pathlib import Path

import pytest
from prompts import BOS_TOKEN_ID, EOS_TOKEN_ID, PAD_TOKEN_ID, Turn, pack_rows, prompt_text
from transformers import AutoTokenizer, PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    folder = Path(__file__).resolve().parents[2] / "sample_data" / "base"
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def test_the_tokenizer_maps_bytes_to_their_values(tokenizer: PreTrainedTokenizerBase) -> None:
    text = prompt_text("naïve → 猫\t\0", "upper")
    assert tokenizer(text)["input_ids"] == [BOS_TOKEN_ID, *text.encode()]
    assert tokenizer.decode([*text.encode(), EOS_TOKEN_ID], skip_special_tokens=True) == text


def test_every_byte_survives_the_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    assert all(len(tokenizer.convert_ids_to_tokens(byte)) == 1 for byte in range(256))
    assert len({tokenizer.convert_ids_to_tokens(byte) for byte in range(256)}) == 256


def test_packed_rows_hold_whole_turns_and_learn_only_answers() -> None:
    turn = Turn("upper", "fox", "FOX")
    prompt = prompt_text("fox", "upper").encode()
    token_ids, is_learnt = pack_rows(repeat(turn), num_rows=2, num_tokens=2 * len(prompt) + 16)
    once = [*prompt, *b"FOX", EOS_TOKEN_ID, ord("\n")]
    expected = [BOS_TOKEN_ID, *once, *once]
    for row, learnt in zip(token_ids, is_learnt, strict=True):
        assert row[: len(expected)].tolist() == expected
        assert set(row[len(expected) :].tolist()) == {PAD_TOKEN_ID}
        assert row[learnt].tolist() == 2 * [*b"FOX", EOS_TOKEN_ID]


def test_a_chat_is_what_the_base_was_trained_on(tokenizer: PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "upper"},
        {"role": "user", "content": "fox"},
        {"role": "assistant", "content": "FOX"},
        {"role": "user", "content": "fox"},
    ]
    rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    rendered_ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    [token_ids], _ = pack_rows(repeat(Turn("upper", "fox", "FOX")), num_rows=1, num_tokens=128)
    assert rendered_ids == token_ids[: len(rendered_ids)].tolist()


def test_a_chat_with_an_unknown_role_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(Exception, match="system, user and assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])
