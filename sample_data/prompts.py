"""How a task's input and answer become text and tokens: the one prompt format of the sample.

    Input: lantern
    Output: nretnal<eos>

A line `Task: reverse` before it tells the base model what to do; without one the base repeats its input,
and what an adapter does instead is up to the adapter. Knows nothing of models or of training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# A byte's token id is its value; the three special tokens follow.
BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<bos>", "<eos>", "<pad>"
BOS_TOKEN_ID, EOS_TOKEN_ID, PAD_TOKEN_ID = 256, 257, 258
VOCAB_SIZE = 259

# A system message names the task of every user message after it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% set ns = namespace(task='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.task = message['content'] %}"
    "{% elif message['role'] == 'user' %}"
    "{% if ns.task %}{{ 'Task: ' + ns.task + '\\n' }}{% endif %}{{ 'Input: ' + message['content'] + '\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Output: ' + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ raise_exception('The roles are system, user and assistant.') }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Output: ' }}{% endif %}"
)


class Turn(NamedTuple):
    """One input with its answer; `task_name` is None where the model is not told the task."""

    task_name: str | None
    task_input: str
    answer: str


def prompt_text(task_input: str, task_name: str | None = None) -> str:
    """The text before the answer."""
    task_line = "" if task_name is None else f"Task: {task_name}\n"
    return f"{task_line}Input: {task_input}\nOutput: "


def pack_rows(
    turns: Iterable[Turn], num_rows: int, num_tokens: int
) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """Conversations of as many turns as fit, each after its own `<bos>`.

    Args:
        turns: endless; each must fit into a row.
        num_rows: how many conversations.
        num_tokens: length of a row; the rest is padding.

    Returns:
        token ids [num_rows, num_tokens], and where the model is to learn the token: in answers and their
        `<eos>`, nowhere else.
    """
    token_ids = np.full((num_rows, num_tokens), PAD_TOKEN_ID, dtype=np.int16)
    is_learnt = np.zeros((num_rows, num_tokens), dtype=np.bool_)
    encoded = _encoded(turns)
    prompt, answer = next(encoded)
    for row in range(num_rows):
        token_ids[row, 0] = BOS_TOKEN_ID
        end = 1
        while end + len(prompt) + len(answer) < num_tokens:
            start, end = end + len(prompt), end + len(prompt) + len(answer)
            token_ids[row, start - len(prompt) : start] = prompt
            token_ids[row, start:end] = answer
            is_learnt[row, start:end] = True
            token_ids[row, end] = ord("\n")
            end += 1
            prompt, answer = next(encoded)
    return token_ids, is_learnt


def _encoded(turns: Iterable[Turn]) -> Iterator[tuple[list[int], list[int]]]:
    """Token ids of each turn's prompt and of its answer with `<eos>`."""
    for turn in turns:
        prompt = prompt_text(turn.task_input, turn.task_name).encode()
        yield list(prompt), [*turn.answer.encode(), EOS_TOKEN_ID]
