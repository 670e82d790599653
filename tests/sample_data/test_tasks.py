"""The tasks' answers, and the wall between training and held-out inputs."""

from __future__ import annotations

import random
from itertools import islice

import pytest
from tasks import (
    MAX_NUMBER,
    MAX_ROMAN,
    TASK_OF_NAME,
    TASKS,
    Task,
    held_out_inputs,
    is_held_out,
    roman_numeral,
    showcase_inputs,
    spell_number,
    training_inputs,
)


@pytest.mark.parametrize(
    ("name", "task_input", "answer"),
    [
        ("upper", "lantern", "LANTERN"),
        ("reverse", "hello", "olleh"),
        ("sort", "palace", "aacelp"),
        ("double", "oak", "ooaakk"),
        ("consonants", "flower", "flwr"),
        ("caesar", "zebra", "cheud"),
        ("swap", "flower", "rlowef"),
        ("count", "library", "7"),
        ("pig-latin", "chimney", "imneychay"),
        ("pig-latin", "oyster", "oysterway"),
        ("pig-latin", "rhythm", "rhythmay"),
        ("increment", "9999", "10000"),
        ("spell", "347", "three hundred forty-seven"),
        ("digits", "two thousand eight", "2008"),
        ("roman", "1994", "MCMXCIV"),
    ],
)
def test_answers(name: str, task_input: str, answer: str) -> None:
    assert TASK_OF_NAME[name].answer(task_input) == answer


def test_spelling_is_one_to_one() -> None:
    spellings = {spell_number(value) for value in range(MAX_NUMBER + 1)}
    assert len(spellings) == MAX_NUMBER + 1
    assert spell_number(0) == "zero"
    assert spell_number(4000) == "four thousand"


def test_roman_numerals_are_one_to_one() -> None:
    assert len({roman_numeral(value) for value in range(1, MAX_ROMAN + 1)}) == MAX_ROMAN


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_training_never_sees_a_held_out_input(task: Task) -> None:
    held_out = set(held_out_inputs(task, 100, seed=1))
    seen = set(islice(training_inputs(task, random.Random(1)), 2_000))
    assert len(held_out) == 100
    assert all(is_held_out(text) for text in held_out)
    assert not any(is_held_out(text) for text in seen)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_held_out_inputs_are_reproducible_and_never_a_mere_copy(task: Task) -> None:
    inputs = held_out_inputs(task, 50, seed=3)
    assert inputs == held_out_inputs(task, 50, seed=3)
    assert inputs != held_out_inputs(task, 50, seed=4)
    assert all(task.answer(text) != text for text in inputs)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_showcase_inputs_are_held_out(task: Task) -> None:
    inputs = showcase_inputs(task, 6, seed=2)
    assert len(set(inputs)) == 6
    assert all(is_held_out(text) for text in inputs)
    assert not task.showcase or set(inputs) <= set(task.showcase)
