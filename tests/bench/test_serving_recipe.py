from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.cold_starts import keeps_adapters, told_strategy
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.bench.serving_recipe import ServingRecipe
from caraserve_cli.core import Bounds
from caraserve_cli.errors import OptionError
from tests.bench.serving_recipes import POPULAR, SERVING, write


def load(path: Path) -> ServingRecipe:
    recipe = load_any_recipe(path)
    assert isinstance(recipe, ServingRecipe)
    return recipe


def test_every_key_is_read(tmp_path: Path) -> None:
    text = SERVING.replace(
        "rate_per_s = 50", "load = 0.8\nemulate_link_gbps = 3\ndeadline_ms = 9\nmax_running = 7"
    )
    recipe = load(write(tmp_path, text + POPULAR))
    assert (recipe.warmups, recipe.repeats, recipe.options.prefix_caching) == (1, 2, False)
    distinct, popular = recipe.cases
    assert (distinct.strategies, distinct.num_requests, distinct.num_adapters) == (("cached", "stream"), 6, 6)
    assert (distinct.rate_per_s, distinct.load, distinct.link_gbps) == (None, 0.8, 3.0)
    assert distinct.bounds == Bounds(deadline_ms=9.0, ttft_slo_ms=1e6)
    assert (distinct.options.max_running, distinct.options.prefix_caching) == (7, False)
    assert [
        (each.strategy, each.measure, each.over, each.bound, each.is_at_most)
        for each in distinct.requirements
    ] == [
        ("stream", "mean_latency", None, 1e6, True),
        ("stream", "mean_ttft", "cached", 1e6, True),
        ("stream", "p99_ttft", "cached", 1e-6, False),
    ]
    assert (popular.num_adapters, popular.popularity, popular.rate_per_s) == (2, 1.5, 200.0)


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("rate_per_s = 50", "", "'rate_per_s' is missing; it must be given or 'load' given, one of the two"),
        (
            "rate_per_s = 50",
            "rate_per_s = 50\nload = 0.5",
            "'rate_per_s' must be given or 'load' given, one of",
        ),
        ("rate_per_s = 50", "rate_per_s = 0", "'rate_per_s' must be a number above zero"),
        ("requests = 6", "requests = 6\nadapters = 0", "'adapters' must be at least 1, got 0"),
        ("requests = 6", "requests = 6\nadapters = 7", "'adapters' must be at most 'requests'"),
        ("requests = 6", "requests = 6\npeft = true", "'peft' has no meaning in a serving benchmark"),
        ("requests = 6", "requests = 6\ncold = true", "'cold' has no meaning in a serving benchmark"),
        ('["cached", "stream"]', "[]", "'strategies' must be a list of strategies without repetition"),
        ('["cached", "stream"]', '["cached", "steam"]', "'strategies' must be a list of strategies without"),
        ('["cached", "stream"]', '["stream"]', "'over' must be one of the case's strategies, stream, got"),
        ('over = "cached"', 'over = "stream"', "'over' must be another strategy, got 'stream'"),
        ('over = "cached"', "", "unknown key 'mean_ttft_at_most'; did you mean 'mean_ttft_at_most_ms'?"),
        ("mean_ttft_at_most = 1e6", "mean_ttft_at_most_ms = 1e6", "unknown key 'mean_ttft_at_most_ms'"),
        ("mean_latency_at_most_ms = 1e6", "", "[[require]]: 'mean_ttft_at_most_ms' is missing"),
        ("mean_latency_at_most_ms", "mean_latancy_at_most_ms", "did you mean 'mean_latency_at_most_ms'?"),
        ("output_tokens = 4", "", "'output_tokens' is missing"),
        ("output_tokens = 4", "output_tokens = 4\nburst = 3", "[[case]]: unknown key 'burst'"),
        (
            "output_tokens = 4",
            "output_tokens = 4\nemulate_link_gbps = 0",
            "'emulate_link_gbps' must be a number",
        ),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in SERVING
    with pytest.raises(OptionError) as refused:
        load(write(tmp_path, SERVING.replace(old, new, 1)))
    assert fragment in str(refused.value)
    assert "mine.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_strategies_that_keep_no_adapter(tmp_path: Path) -> None:
    """A replica that is told `cpu-assist` for one of them has CPU workers."""
    text = SERVING.replace('["cached", "stream"]', '["cached", "stream", "cpu-assist-unkept"]')
    case = load(write(tmp_path, text)).cases[0]
    assert [keeps_adapters(strategy) for strategy in case.strategies] == [True, True, False]
    assert [told_strategy(strategy) for strategy in case.strategies] == ["cached", "stream", "cpu-assist"]
    assert case.options.cold_start == "cpu-assist"
    with pytest.raises(OptionError, match="'strategies' must be a list"):
        load(write(tmp_path, SERVING.replace('"stream"]', '"cached-unkept"]')))


def test_several_processes_hold_the_base(tmp_path: Path) -> None:
    recipe = load(write(tmp_path, "tensor_parallel = 2\n" + SERVING))
    assert recipe.options.tensor_parallel == recipe.cases[0].options.tensor_parallel == 2


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ('"stream"]', '"stream", "cpu-assist-unkept"]', "'strategies' must be without 'cpu-assist' beside"),
        ("requests = 6", "requests = 6\ncpu_workers = 1", "'cpu_workers' has no meaning beside"),
        ("requests = 6", "requests = 6\nemulate_link_gbps = 3", "'emulate_link_gbps' has no meaning beside"),
    ],
)
def test_what_several_processes_cannot_do_is_named(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    with pytest.raises(OptionError) as refused:
        load(write(tmp_path, "tensor_parallel = 2\n" + SERVING.replace(old, new, 1)))
    assert f"{fragment} 'tensor_parallel'" in str(refused.value)


def test_a_share_of_saturation_needs_what_saturates(tmp_path: Path) -> None:
    text = POPULAR.replace("rate_per_s = 200", "load = 0.8")
    with pytest.raises(OptionError, match="'load' must be left out, or 'strategies' have 'cached'"):
        load(write(tmp_path, SERVING.split("[[case]]")[0] + text))


def test_the_embedded_recipe_requires_what_was_promised() -> None:
    """Issue 4: against `cached`, absolute, and under load."""
    recipe = load(find_recipe("serving"))
    found = [
        {
            (each.strategy, each.over, each.measure): each.bound if each.is_at_most else -each.bound
            for each in case.requirements
        }
        for case in recipe.cases
    ]
    ratios = {
        ("auto", "cached", "mean_ttft"): 1.03,
        ("auto", "cached", "mean_tpot"): 1.03,
        ("auto", "cached", "mean_latency"): 1.03,
        ("auto", "cached", "p99_ttft"): 1.10,
        ("auto", "cached", "p95_step_beside_load"): 1.05,
    }
    bounds = {("auto", None, "mean_ttft"): 30, ("auto", None, "p99_ttft"): 100}
    assert found == [
        {**ratios, **bounds, ("auto", None, "mean_latency"): 800},
        {**ratios, **bounds, ("auto", None, "mean_latency"): 900},
        ratios,
        {("on-demand-blocking", "auto", "mean_latency"): -1.4, ("on-demand", "auto", "mean_ttft"): -1.5},
    ]
    assert recipe.repeats >= 5
    assert [(case.rate_per_s, case.load, case.link_gbps) for case in recipe.cases] == [
        (9, None, None),
        (15, None, None),
        (None, 0.8, None),
        (9, None, 3),
    ]
    assert all(case.num_adapters == case.num_requests and case.lora_ranks == (64,) for case in recipe.cases)
    assert [(case.prompt_tokens, case.output_tokens) for case in recipe.cases] == [(128, 128)] * 3 + [
        (16, 128)
    ]
