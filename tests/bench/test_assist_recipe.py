"""Recipes of CPU workers: every key is honoured, or refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.bench.assist_recipe import AssistCase, AssistLimits, AssistRecipe
from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.errors import OptionError
from tests.bench.assist_recipes import TINY, write_assist
from tests.cli.command import SAMPLE


def test_every_key_is_honoured(tmp_path: Path) -> None:
    assert load_any_recipe(write_assist(tmp_path)) == AssistRecipe(
        name="mine",
        description="a tiny benchmark",
        base=str(SAMPLE / "base"),
        device="cpu",
        dtype="float32",
        modules=("q_proj", "v_proj", "o_proj"),
        warmups=1,
        repeats=2,
        cpu_workers=2,
        cases=(
            AssistCase(num_tokens=1, lora_rank=16, limits=AssistLimits()),
            AssistCase(num_tokens=40, lora_rank=16, limits=AssistLimits(1e-9, 1e-9, None)),
        ),
    )


def test_defaults(tmp_path: Path) -> None:
    lines = ('kind = "assist"', 'description = "d"', 'modules = ["q_proj"]', "lora_ranks = [8, 4]")
    recipe = load_any_recipe(write_assist(tmp_path, "\n".join([*lines, "prompt_tokens = [2, 1]"])))
    assert isinstance(recipe, AssistRecipe)
    assert (recipe.base, recipe.device, recipe.dtype) == ("llama2-7b", "auto", "bfloat16")
    assert (recipe.warmups, recipe.repeats, recipe.cpu_workers) == (1, 9, None)
    names = [case.name for case in recipe.cases]
    assert names == ["2 tokens, rank 8", "1 token, rank 8", "2 tokens, rank 4", "1 token, rank 4"]


def test_a_saving_is_required_of_a_gpu(tmp_path: Path) -> None:
    text = TINY.replace('device = "cpu"', 'device = "cuda"') + "saved_ms_at_least = 2\n"
    recipe = load_any_recipe(write_assist(tmp_path, text))
    assert isinstance(recipe, AssistRecipe)
    assert recipe.cases[1].limits == AssistLimits(1e-9, 1e-9, 2)


def test_the_embedded_recipe_requires_what_was_promised() -> None:
    recipe = load_any_recipe(find_recipe("assist"))
    assert isinstance(recipe, AssistRecipe)
    assert (recipe.base, recipe.device, recipe.dtype) == ("llama2-7b", "cuda", "bfloat16")
    assert recipe.modules == ("q_proj", "k_proj", "v_proj", "o_proj")
    speedups = {(case.num_tokens, case.lora_rank): case.limits.speedup_at_least for case in recipe.cases}
    assert speedups == {(16, 64): None, (128, 64): 1.4, (256, 64): 1.4}


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("repeats = 2", "repeats = 0", "'repeats' must be at least 1"),
        ("repeats = 2", "repeat = 2", "unknown key 'repeat'; did you mean 'repeats'?"),
        ("cpu_workers = 2", "cpu_workers = 0", "'cpu_workers' must be at least 1"),
        ("lora_ranks = [16]", "lora_ranks = [16, 16]", "'lora_ranks' must be a list without repetition"),
        ("lora_ranks = [16]", "", "'lora_ranks' is missing"),
        ("prompt_tokens = [1, 40]", "prompt_tokens = [0]", "'prompt_tokens' must be a list of whole numbers"),
        ('"v_proj"', '"w_proj"', "'modules' must be a list of modules"),
        ("prompt_tokens = 40", "prompt_tokens = 2", r"\[\[require\]\]: 'prompt_tokens' must be one of those"),
        ("lora_rank = 16", "lora_rank = 8", r"\[\[require\]\]: 'lora_rank' must be one of those measured"),
        ("lora_rank = 16", "", "'lora_rank' is missing"),
        ("speedup_at_least = 1e-9", "speedup_at_least = 0", "'speedup_at_least' must be a number above zero"),
        ("speedup_at_least = 1e-9", "speedup = 1", r"\[\[require\]\]: unknown key 'speedup'"),
        ("peak_share_at_least = 1e-9", "peak_share_at_least = 2", "'peak_share_at_least' must be at most 1"),
        ("speedup_at_least = 1e-9", "saved_ms_at_least = 1", "'saved_ms_at_least' has no meaning without"),
        (
            "peak_share_at_least = 1e-9",
            "[[require]]\nprompt_tokens = 40\nlora_rank = 16",
            "'require' must be tables of different cases",
        ),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in TINY
    with pytest.raises(OptionError, match=fragment):
        load_any_recipe(write_assist(tmp_path, TINY.replace(old, new, 1)))
