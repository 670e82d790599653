from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.bench.arrival_recipe import ArrivalRecipe, Cell, GridKeys
from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.errors import OptionError
from tests.bench.serving_recipes import GRID, write


def load(path: Path) -> ArrivalRecipe:
    recipe = load_any_recipe(path)
    assert isinstance(recipe, ArrivalRecipe)
    return recipe


def test_every_key_is_read(tmp_path: Path) -> None:
    text = GRID.replace('["cached", "stream"]', '["auto", "stream"]\nauto_within = 1.05')
    text = text.replace('name = "own link"', 'name = "slow"\nemulate_link_gbps = 3\nmax_running = 4')
    recipe = load(write(tmp_path, text))
    assert (recipe.strategies, recipe.auto_within) == (("auto", "stream"), 1.05)
    assert (recipe.warmups, recipe.repeats, recipe.options.prefix_caching) == (1, 3, False)
    (case,) = recipe.cases
    assert case.grid == GridKeys(num_decoding=2, decode_tokens=40, num_cold=2, arrival_tokens=2)
    assert (case.link_gbps, case.options.max_running) == (3.0, 4)
    assert case.cells == (Cell(3, 2), Cell(7, 2), Cell(3, 5), Cell(7, 5))


def test_each_rank_has_adapters_that_stay_and_cold_ones(tmp_path: Path) -> None:
    (case,) = load(write(tmp_path, GRID)).cases
    decoding, cold = case.adapters_of_rank(5)
    names = [adapter.name for adapter in (*decoding, *cold)]
    assert names == [f"rank-5/q_proj+v_proj/{copy}" for copy in range(4)]
    assert (len(decoding), len(cold), case.num_adapters) == (2, 2, 8)


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ('["cached", "stream"]', '["cached", "cached"]', "'strategies' must be a list of strategies without"),
        (
            '["cached", "stream"]',
            '["stream"]\nauto_within = 2',
            "'auto_within' has no meaning without 'auto'",
        ),
        (
            '["cached", "stream"]',
            '["cached", "auto"]\nauto_within = 2',
            "'auto_within' has no meaning without 'auto' and one to compare it with",
        ),
        ("arrivals = 3", "repeats = 3", "unknown key 'repeats'"),
        ("output_tokens = 2", "output_tokens = 1", "'output_tokens' must be at least 2, got 1"),
        ("decoding = 2", "decoding = 2\nmax_running = 2", "'max_running' must be above 'decoding' (2)"),
        ("prompt_tokens = [3, 7]", "prompt_tokens = 3", "'prompt_tokens' must be a list of whole numbers"),
        ("lora_ranks = [2, 5]", "lora_ranks = [2, 2]", "'lora_ranks' must be a list without repetition"),
        ("lora_ranks = [2, 5]", "", "[[case]]: 'lora_ranks' is missing"),
        ('["q_proj", "v_proj"]', '["qkv"]', "'modules' must be a list of modules without repetition"),
        ('name = "own link"', 'name = "own link"\nrequests = 3', "[[case]]: unknown key 'requests'"),
        (
            'name = "own link"',
            'name = "x"\nhost_adapter_memory = "1MB"',
            "'host_adapter_memory' has no meaning",
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in GRID
    with pytest.raises(OptionError) as refused:
        load(write(tmp_path, GRID.replace(old, new, 1)))
    assert fragment in str(refused.value)
    assert "mine.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_embedded_recipe_is_the_grid_that_was_promised() -> None:
    """Issue 4: five links, three prompts, three ranks, beside 8 decoding requests."""
    recipe = load(find_recipe("break-even"))
    assert [case.link_gbps for case in recipe.cases] == [None, 25, 12, 6, 3]
    cells = {(tokens, lora_rank) for tokens in (16, 128, 512) for lora_rank in (8, 64, 128)}
    for case in recipe.cases:
        assert {(cell.prompt_tokens, cell.lora_rank) for cell in case.cells} == cells
        assert case.grid.num_decoding == 8
    assert recipe.repeats >= 30
    assert recipe.auto_within == 1.05
    assert set(recipe.strategies) == {"auto", "stream", "cpu-assist", "on-demand", "on-demand-blocking"}
