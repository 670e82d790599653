from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.bench.serving_recipe import ServingCase, ServingRecipe
from caraserve_cli.bench.serving_requests import make_arrivals
from tests.bench.serving_recipes import POPULAR, SERVING, write


@pytest.fixture
def cases(tmp_path: Path) -> tuple[ServingCase, ...]:
    recipe = load_any_recipe(write(tmp_path, SERVING + POPULAR))
    assert isinstance(recipe, ServingRecipe)
    return recipe.cases


def test_a_repeat_is_the_same_for_every_strategy_and_no_other(cases: tuple[ServingCase, ...]) -> None:
    first, again, other = (make_arrivals(cases[0], repeat, 50.0, 256) for repeat in (1, 1, 2))
    assert first == again
    assert [each.arrival_ms for each in first] != [each.arrival_ms for each in other]
    assert {each.prompt_token_ids for each in first}.isdisjoint(each.prompt_token_ids for each in other)


def test_requests_arrive_in_order_each_with_its_own_adapter(cases: tuple[ServingCase, ...]) -> None:
    requests = make_arrivals(cases[0], 1, 50.0, 256)
    assert all(before.arrival_ms < after.arrival_ms for before, after in pairwise(requests))
    assert len({each.adapter for each in requests}) == len(requests) == 6
    assert {each.bounds.ttft_slo_ms for each in requests} == {1e6}


def test_without_a_rate_all_are_there_at_once(cases: tuple[ServingCase, ...]) -> None:
    assert {each.arrival_ms for each in make_arrivals(cases[0], 1, None, 256)} == {0.0}


def test_arrivals_have_the_rate_of_the_case(cases: tuple[ServingCase, ...]) -> None:
    """1,200 gaps of 20 ms in the mean: its standard error is 3%."""
    last_ms = [make_arrivals(cases[0], repeat, 50.0, 256)[-1].arrival_ms for repeat in range(200)]
    assert sum(last_ms) / (200 * 6) == pytest.approx(20, rel=0.09)


def test_popular_adapters_are_drawn_more_often(cases: tuple[ServingCase, ...]) -> None:
    """Weights 1 and 2 ** -1.5: 74% of the requests have the first."""
    drawn = [each.adapter for repeat in range(200) for each in make_arrivals(cases[1], repeat, 9.0, 256)]
    assert drawn.count("rank-2/q_proj/0") / len(drawn) == pytest.approx(0.739, abs=0.05)
    assert set(drawn) == {"rank-2/q_proj/0", "rank-2/q_proj/1"}
