"""Which share of the requests the most popular adapters draw, and what is no popularity."""

from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.bench.popularity import PopularityStep, popularity_weights
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.bench.serving_recipe import ServingRecipe
from caraserve_cli.bench.serving_requests import make_arrivals
from caraserve_cli.errors import OptionError
from tests.bench.serving_recipes import POPULAR, SERVING, write

STEPS = """popularity = [
    { adapters = 1, share = 0.5 },
    { adapters = 3, share = 0.9 },
    { adapters = 8, share = 1 },
]"""


def recipe_of(folder: Path, popularity: str, adapters: int = 8) -> ServingRecipe:
    """The recipe of tests/bench/serving_recipes.py with another popularity."""
    text = POPULAR.replace("popularity = 1.5", popularity).replace("adapters = 2", f"adapters = {adapters}")
    recipe = load_any_recipe(write(folder, SERVING + text))
    assert isinstance(recipe, ServingRecipe)
    return recipe


def test_a_zipf_law_falls_with_the_place() -> None:
    assert popularity_weights(1.0, 3) == [1, 1 / 2, 1 / 3]


def test_steps_are_drawn_as_they_say(tmp_path: Path) -> None:
    """Of 8 adapters, more than the case has requests: 1,200 draws, whose shares have errors below 1.5%."""
    case = recipe_of(tmp_path, STEPS).cases[1]
    assert case.num_adapters == 8 > case.num_requests == 6
    drawn = [each.adapter for repeat in range(200) for each in make_arrivals(case, repeat, 9.0, 256)]
    shares = [drawn.count(f"rank-2/q_proj/{place}") / len(drawn) for place in range(8)]
    assert shares[0] == pytest.approx(0.5, abs=0.06)
    assert sum(shares[:3]) == pytest.approx(0.9, abs=0.04)
    assert shares[1] == pytest.approx(shares[2], abs=0.06)


def test_fewer_adapters_are_the_most_popular_ones() -> None:
    steps = (PopularityStep(num_adapters=1, share=0.5), PopularityStep(num_adapters=3, share=1.0))
    assert popularity_weights(steps, 2) == [0.5, 0.25]


@pytest.mark.parametrize(
    ("popularity", "adapters", "said"),
    [
        ("popularity = []", 2, "steps whose 'adapters' and 'share' ascend"),
        (STEPS.replace("0.9", "0.4"), 8, "ascend, the last share being 1"),
        (STEPS.replace("adapters = 3", "adapters = 9"), 8, "ascend"),
        (STEPS.replace("share = 1 ", "share = 0.95 "), 8, "the last share being 1"),
        (STEPS, 9, "of at least the case's 9 adapters"),
        (STEPS.replace("share = 0.5", "part = 0.5"), 8, "'share' is missing"),
        ('popularity = "zipf"', 2, "a number above zero"),
    ],
)
def test_what_is_no_popularity_is_refused(tmp_path: Path, popularity: str, adapters: int, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        recipe_of(tmp_path, popularity, adapters)
