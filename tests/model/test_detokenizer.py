from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from caraserve_cli.model.detokenizer import Detokenizer
from caraserve_cli.model.tokenizer import Tokenizer
from tests.model.tiny_tokenizers import byte_fallback, byte_level

ANSWER = " hello  world 😀😀 grüße\nthe end 日本 x"
NEVER = ("\x00never",)


@pytest.fixture(params=[byte_level, byte_fallback])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    make: Callable[[Path], Tokenizer] = request.param
    return make(tmp_path)


def split(tokenizer: Tokenizer, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of its answer, such that the two together are tokenised as one text."""
    prompt_ids, all_ids = tokenizer.encode_batch([prompt, prompt + answer])
    assert all_ids[: len(prompt_ids)] == prompt_ids
    return prompt_ids, all_ids[len(prompt_ids) :]


def texts_on_the_way(
    tokenizer: Tokenizer, prompt_ids: Sequence[int], ids: Sequence[int], stop: tuple[str, ...] = ()
) -> list[str]:
    """The text after each token, up to a stop string."""
    detokenizer = Detokenizer(tokenizer, prompt_ids, stop)
    texts = []
    for token_id in ids:
        stopped = detokenizer.push(token_id)
        texts.append(detokenizer.text)
        if stopped:
            break
    return texts


@pytest.mark.parametrize("stop", [(), NEVER])
def test_text_grows_to_the_whole_answer_without_splitting_a_character(
    tokenizer: Tokenizer, stop: tuple[str, ...]
) -> None:
    prompt_ids, ids = split(tokenizer, "the quick dog", ANSWER)
    texts = texts_on_the_way(tokenizer, prompt_ids, ids, stop)
    assert texts[-1] == ANSWER
    for text in texts:
        assert "\ufffd" not in text
        assert ANSWER.startswith(text)


def test_characters_are_really_split_over_tokens(tokenizer: Tokenizer) -> None:
    prompt_ids, ids = split(tokenizer, "the quick dog", " 😀")
    texts = texts_on_the_way(tokenizer, prompt_ids, ids)
    assert texts[-4:] == [" ", " ", " ", " 😀"]


def test_an_unfinished_character_at_the_end_is_dropped(tokenizer: Tokenizer) -> None:
    prompt_ids, ids = split(tokenizer, "the quick dog", " 😀😀")
    assert texts_on_the_way(tokenizer, prompt_ids, ids[:-1])[-1] == " 😀"
    assert texts_on_the_way(tokenizer, prompt_ids, ids[:-1], NEVER)[-1] == " 😀"


def test_special_tokens_are_left_out(tokenizer: Tokenizer) -> None:
    prompt_ids, ids = split(tokenizer, "the quick dog", " end")
    bos = prompt_ids[0]
    assert texts_on_the_way(tokenizer, prompt_ids, [*ids, bos, *ids])[-1] == " end end"


def test_the_answer_to_an_empty_prompt_begins_a_text(tokenizer: Tokenizer) -> None:
    bos, *ids = tokenizer.encode_batch(["the end"])[0]
    assert texts_on_the_way(tokenizer, [bos], ids)[-1] == "the end"
    assert texts_on_the_way(tokenizer, [], ids)[-1] == "the end"


@pytest.mark.parametrize(
    ("stop", "kept"),
    [
        ("\n", " hello  world 😀😀 grüße"),
        ("o", " hell"),
        ("lo  wor", " hel"),
        ("😀😀", " hello  world "),
        ("😀 g", " hello  world 😀"),
        (" hello", ""),
        ("本", " hello  world 😀😀 grüße\nthe end 日"),
        (ANSWER, ""),
    ],
)
def test_stop_strings_across_tokens(tokenizer: Tokenizer, stop: str, kept: str) -> None:
    prompt_ids, ids = split(tokenizer, "the quick dog", ANSWER)
    detokenizer = Detokenizer(tokenizer, prompt_ids, (stop,))
    pushed = next(number for number, token_id in enumerate(ids, 1) if detokenizer.push(token_id))
    assert detokenizer.text == kept
    # Not a token later than the stop string is there.
    assert stop not in tokenizer.decode([*prompt_ids, *ids[: pushed - 1]])[len("the quick dog") :]


def test_the_first_of_several_stop_strings_counts(tokenizer: Tokenizer) -> None:
    prompt_ids, ids = split(tokenizer, "the quick dog", ANSWER)
    assert texts_on_the_way(tokenizer, prompt_ids, ids, ("world", "llo", "end"))[-1] == " he"


def test_a_stop_string_in_the_prompt_does_not_count(tokenizer: Tokenizer) -> None:
    prompt_ids, ids = split(tokenizer, "the quick dog", " end")
    texts = texts_on_the_way(tokenizer, prompt_ids, ids, ("dog", "g e"))
    assert len(texts) == len(ids)
    assert texts[-1] == " end"


def test_a_long_answer_is_found_to_stop_wherever_the_window_moved(tokenizer: Tokenizer) -> None:
    words = ["hello", "world", "😀", "日本", "the", "lazy", "grüße"]
    for length in range(20, 80, 7):
        answer = "".join(f" {words[index % 7]}" for index in range(length))
        prompt_ids, ids = split(tokenizer, "the quick dog", answer + " END the")
        assert texts_on_the_way(tokenizer, prompt_ids, ids, (" END",))[-1] == answer


def test_stop_strings_that_never_come_change_no_text_whatever_the_bytes(tokenizer: Tokenizer) -> None:
    generator = random.Random(0)
    prompt_ids = tokenizer.encode_batch(["the"])[0]
    for _ in range(60):
        ids = [generator.randrange(tokenizer.vocab_size) for _ in range(generator.randrange(1, 120))]
        plain, watched = Detokenizer(tokenizer, prompt_ids), Detokenizer(tokenizer, prompt_ids, NEVER)
        for token_id in ids:
            plain.push(token_id)
            assert not watched.push(token_id)
        assert watched.text == plain.text


def test_a_prompt_that_ends_inside_a_character(tokenizer: Tokenizer) -> None:
    all_ids = tokenizer.encode_batch(["the 😀 end"])[0]
    inside = next(n for n in range(1, len(all_ids)) if tokenizer.decode(all_ids[:n]).endswith("\ufffd"))
    assert texts_on_the_way(tokenizer, all_ids[:inside], all_ids[inside:])[-1] == "😀 end"


def test_a_replacement_character_in_the_prompt_is_not_part_of_the_answer(tokenizer: Tokenizer) -> None:
    prompt_ids, ids = split(tokenizer, "the \ufffd", " end")
    assert texts_on_the_way(tokenizer, prompt_ids, ids)[-1] == " end"
