"""Where the letters come from: a list of everyday words, and a maker of made-up ones.

Knows nothing of tasks, of the split into training and held-out inputs, or of models.
"""

from __future__ import annotations

import random
from pathlib import Path

MIN_LETTERS = 3
MAX_LETTERS = 9

EVERYDAY_WORDS = tuple((Path(__file__).parent / "words.txt").read_text(encoding="utf-8").split())

_CLUSTERS = (
    "bl",
    "br",
    "ch",
    "cl",
    "cr",
    "dr",
    "fl",
    "fr",
    "gl",
    "gr",
    "pl",
    "pr",
    "sh",
    "sl",
    "sp",
    "st",
    "th",
)
_ONSETS = (*"bcdfghjklmnpqrstvwxyz", *_CLUSTERS)
_VOWELS = (*"aaeeiioou", "ai", "ea", "ee", "io", "oa", "ou")
_CODAS = (*[""] * 5, *"bdglmnprstxz", "ck", "ll", "nt", "rd", "ss", "st")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def draw_word(rng: random.Random) -> str:
    """A word of `MIN_LETTERS` to `MAX_LETTERS` letters: everyday, made up, or (rarely) mere letters."""
    kind = rng.random()
    if kind < 0.15:
        return rng.choice(EVERYDAY_WORDS)
    num_letters = rng.randint(MIN_LETTERS, MAX_LETTERS)
    if kind < 0.35:
        return "".join(rng.choices(_ALPHABET, k=num_letters))
    return _made_up_word(rng, num_letters)


def _made_up_word(rng: random.Random, num_letters: int) -> str:
    """Syllables until there are enough letters, cut to exactly `num_letters`."""
    letters = rng.choice(_VOWELS) if rng.random() < 0.15 else ""
    while len(letters) < num_letters:
        letters += rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
    return letters[:num_letters]
