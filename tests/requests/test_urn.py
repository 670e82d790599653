from __future__ import annotations

import random
from collections import Counter

import pytest

from caraserve_cli.requests.urn import Urn


@pytest.mark.parametrize("counts", [[1], [3, 0, 2], [0, 0, 5], [1] * 9, [10, 1, 1, 1, 1]])
def test_every_ball_is_drawn_once(counts: list[int]) -> None:
    urn, chosen = Urn(counts), random.Random(1)
    drawn = Counter(urn.draw(chosen) for _ in range(sum(counts)))
    assert [drawn[kind] for kind in range(len(counts))] == counts
    assert len(urn) == 0


def test_an_urn_may_be_empty() -> None:
    assert len(Urn([])) == len(Urn([0, 0, 0])) == 0


def test_a_ball_is_as_likely_as_any_other_at_every_draw() -> None:
    """Of 3 balls of one kind and 1 of another, the lone one is last in a quarter of all draws, as first."""
    chosen = random.Random(2)
    places = Counter[int]()
    for _ in range(8000):
        urn = Urn([3, 1])
        places[[urn.draw(chosen) for _ in range(4)].index(1)] += 1
    assert [places[place] / 8000 for place in range(4)] == pytest.approx([0.25] * 4, abs=0.02)
