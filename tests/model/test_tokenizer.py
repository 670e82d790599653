from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from caraserve_cli.errors import BaseModelError, RowError, RowErrorCode
from caraserve_cli.model.tokenizer import load_tokenizer
from tests.model.tiny_tokenizers import TEXTS, byte_fallback, byte_level

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
    "{{ message['role'] + ': ' + message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_ids_are_those_of_transformers(tmp_path: Path, kind: type) -> None:
    tokenizer = kind(tmp_path)
    texts = [*TEXTS, "", "  spaces ", "grüße 😀", "<eos>"]
    hf = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.encode_batch(texts) == [hf(text)["input_ids"] for text in texts]
    assert tokenizer.vocab_size == len(hf)


def test_truncation_and_padding_of_the_training_do_not_touch_prompts(tmp_path: Path) -> None:
    byte_level(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    path.write_text(json.dumps(content))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer is not None
    short, long = tokenizer.encode_batch(["a", TEXTS[0]])
    assert len(short) == 2
    assert len(long) > 3


def test_a_chat_is_what_the_template_writes_with_one_bos(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path, chat_template=TEMPLATE)
    messages = [{"role": "user", "content": "hello"}]
    ids = tokenizer.encode_chat(messages)
    assert ids == tokenizer.encode_batch(["user: hello\nassistant:"])[0]
    hf = AutoTokenizer.from_pretrained(tmp_path)
    assert ids == hf.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize(
    "messages",
    [[{"role": "king", "content": "hello"}], [{"role": "user", "content": 3}], [{"role": "user"}], [{}]],
)
def test_messages_that_the_template_refuses_are_a_row_error(
    tmp_path: Path, messages: list[dict[str, object]]
) -> None:
    tokenizer = byte_level(tmp_path, chat_template=TEMPLATE)
    with pytest.raises(RowError, match="the chat template refuses") as caught:
        tokenizer.encode_chat(messages)
    assert caught.value.code == RowErrorCode.CHAT_TEMPLATE
    assert "\n" not in caught.value.message


def test_messages_nested_too_deeply_are_a_row_error(tmp_path: Path) -> None:
    deep: object = []
    for _ in range(3000):
        deep = [deep]
    tokenizer = byte_level(tmp_path, chat_template="{{ messages | tojson }}")
    with pytest.raises(RowError, match="the chat template refuses"):
        tokenizer.encode_chat([{"role": "user", "content": "hello", "more": deep}])


def test_no_chat_template_is_a_row_error(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="no chat template") as caught:
        byte_level(tmp_path).encode_chat([{"role": "user", "content": "hello"}])
    assert caught.value.code == RowErrorCode.CHAT_TEMPLATE


def test_byte_tokens_are_known(tmp_path: Path) -> None:
    tokenizer = byte_fallback(tmp_path)
    ids = tokenizer.encode_batch(["a😀"])[0]
    assert [tokenizer.is_byte(token_id) for token_id in ids[-5:]] == [False, True, True, True, True]
    assert not tokenizer.is_byte(10**6)


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert load_tokenizer(tmp_path) is None


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(BaseModelError) as caught:
        load_tokenizer(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}: the tokenizer cannot be read")
    assert "\n" not in str(caught.value)
