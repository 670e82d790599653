"""The tasks of the sample: what goes in, what the one right answer is, and which inputs are held out.

Everything here is pure text: no tokens, no prompts, no models. An input is held out from *all* training
(of the base and of every adapter) by a hash of its text, so the two splits cannot overlap.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from words import EVERYDAY_WORDS, draw_word

HELD_OUT_FRACTION = 1 / 8
MAX_NUMBER = 9_999
MAX_ROMAN = 3_999

_VOWELS = "aeiou"
_CAESAR_SHIFT = 3
_SMALL_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    "nineteen",
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ROMAN_NUMERALS = (
    *((1000, "M"), (900, "CM"), (500, "D"), (400, "CD"), (100, "C"), (90, "XC")),
    *((50, "L"), (40, "XL"), (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I")),
)


@dataclass(frozen=True, slots=True)
class Task:
    """One exactly checkable text task.

    Attributes:
        name: what the base model is told in a `Task:` line.
        summary: one line for people.
        draw: makes one input, training or held out.
        answer: the right answer to an input.
        showcase: inputs that read well in the requests file; may be empty.
    """

    name: str
    summary: str
    draw: Callable[[random.Random], str]
    answer: Callable[[str], str]
    showcase: tuple[str, ...] = ()


def is_held_out(task_input: str) -> bool:
    """Whether no training may ever see this input."""
    digest = hashlib.blake2b(task_input.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_FRACTION * 2**32


def training_inputs(task: Task, rng: random.Random) -> Iterator[str]:
    """Endless inputs of the training split, repeats included."""
    while True:
        task_input = task.draw(rng)
        if not is_held_out(task_input):
            yield task_input


def held_out_inputs(task: Task, count: int, seed: int) -> list[str]:
    """`count` distinct held-out inputs whose answer is not the input itself (a mere copy is never right)."""
    rng = random.Random(f"{task.name}/{seed}")
    chosen: dict[str, None] = {}
    while len(chosen) < count:
        task_input = task.draw(rng)
        if is_held_out(task_input) and task.answer(task_input) != task_input:
            chosen[task_input] = None
    return list(chosen)


def showcase_inputs(task: Task, count: int, seed: int) -> list[str]:
    """Like `held_out_inputs`, but from the task's showcase where it has one."""
    candidates = [text for text in task.showcase if is_held_out(text) and task.answer(text) != text]
    if len(candidates) < count:
        return held_out_inputs(task, count, seed)
    return random.Random(f"{task.name}/{seed}").sample(candidates, count)


def sort_letters(word: str) -> str:
    return "".join(sorted(word))


def double_letters(word: str) -> str:
    return "".join(letter * 2 for letter in word)


def drop_vowels(word: str) -> str:
    return "".join(letter for letter in word if letter not in _VOWELS)


def caesar(word: str) -> str:
    """Every letter three further in the alphabet, z followed by a."""
    return "".join(chr((ord(letter) - ord("a") + _CAESAR_SHIFT) % 26 + ord("a")) for letter in word)


def swap_ends(word: str) -> str:
    return word[-1] + word[1:-1] + word[0]


def pig_latin(word: str) -> str:
    """Leading consonants move to the end, then `ay`; a word that starts with a vowel gets `way`."""
    if word[0] in _VOWELS:
        return word + "way"
    start = next((index for index, letter in enumerate(word) if letter in _VOWELS), len(word))
    return word[start:] + word[:start] + "ay"


def spell_number(value: int) -> str:
    """347 -> three hundred forty-seven; 0 to 9999."""
    if value < 20:
        return _SMALL_NUMBERS[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return _TENS[tens] + (f"-{_SMALL_NUMBERS[ones]}" if ones else "")
    unit, name = (1000, "thousand") if value >= 1000 else (100, "hundred")
    head, rest = divmod(value, unit)
    return f"{_SMALL_NUMBERS[head]} {name}" + (f" {spell_number(rest)}" if rest else "")


def roman_numeral(value: int) -> str:
    numeral = ""
    for unit, letters in _ROMAN_NUMERALS:
        count, value = divmod(value, unit)
        numeral += letters * count
    return numeral


def _draw_number(rng: random.Random, largest: int = MAX_NUMBER) -> int:
    """Short numbers as often as long ones, but for the very few of one and two digits."""
    num_digits = rng.choices((1, 2, 3, 4), weights=(1, 3, 6, 10))[0]
    return rng.randint(10 ** (num_digits - 1), min(10**num_digits - 1, largest))


def _word_task(name: str, summary: str, answer: Callable[[str], str]) -> Task:
    return Task(name, summary, draw_word, answer, showcase=EVERYDAY_WORDS)


_VALUE_OF_SPELLING = {spell_number(value): value for value in range(MAX_NUMBER + 1)}

TASKS: tuple[Task, ...] = (
    _word_task("upper", "upper-case a word", str.upper),
    _word_task("reverse", "write a word backwards", lambda word: word[::-1]),
    _word_task("sort", "sort the letters of a word", sort_letters),
    _word_task("double", "write every letter twice", double_letters),
    _word_task("consonants", "drop the vowels of a word", drop_vowels),
    _word_task("caesar", "shift every letter by three", caesar),
    _word_task("swap", "swap the first and the last letter", swap_ends),
    _word_task("count", "count the letters of a word", lambda word: str(len(word))),
    _word_task("pig-latin", "say a word in Pig Latin", pig_latin),
    Task(
        "increment",
        "add one to a number",
        lambda rng: str(_draw_number(rng)),
        lambda text: str(int(text) + 1),
    ),
    Task(
        "spell",
        "spell a number in words",
        lambda rng: str(_draw_number(rng)),
        lambda text: spell_number(int(text)),
    ),
    Task(
        "digits",
        "write a spelled number in digits",
        lambda rng: spell_number(_draw_number(rng)),
        lambda text: str(_VALUE_OF_SPELLING[text]),
    ),
    Task(
        "roman",
        "write a number as a Roman numeral",
        lambda rng: str(_draw_number(rng, MAX_ROMAN)),
        lambda text: roman_numeral(int(text)),
    ),
)

TASK_OF_NAME = {task.name: task for task in TASKS}
