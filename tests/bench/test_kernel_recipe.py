"""Recipes of operators: every key is honoured, or refused by its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.kernel_cases import (
    AttentionCase,
    FitCase,
    FormsCase,
    LoadCase,
    LoraCase,
    Phase,
    ProductCase,
    TimeLimits,
)
from caraserve_cli.bench.kernel_recipe import KernelRecipe
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.errors import OptionError
from tests.bench.kernel_recipes import HEAD, TINY, write_kernels
from tests.cli.command import SAMPLE

NO_LIMITS = TimeLimits(None, None)


def test_every_key_is_honoured(tmp_path: Path) -> None:
    recipe = load_any_recipe(write_kernels(tmp_path))
    assert isinstance(recipe, KernelRecipe)
    assert recipe == KernelRecipe(
        name="mine",
        description="a tiny benchmark",
        base=str(SAMPLE / "base"),
        device="cpu",
        dtype="float32",
        repeats=2,
        modules=("q_proj", "v_proj", "down_proj"),
        products=(
            ProductCase(num_tokens=3, limits=TimeLimits(1e9, 1e9)),
            ProductCase(num_tokens=1, limits=NO_LIMITS),
        ),
        attention=(
            AttentionCase(
                phase=Phase.DECODE, num_requests=3, context_tokens=21, limits=TimeLimits(1e9, None)
            ),
            AttentionCase(phase=Phase.PREFILL, num_requests=2, context_tokens=17, limits=NO_LIMITS),
        ),
        lora=(
            LoraCase(
                name="decode",
                phase=Phase.DECODE,
                num_tokens=4,
                num_adapters=2,
                lora_ranks=(2, 5),
                limits=TimeLimits(1e9, None),
            ),
            LoraCase(
                name="prefill",
                phase=Phase.PREFILL,
                num_tokens=6,
                num_adapters=3,
                lora_ranks=(4,),
                limits=NO_LIMITS,
            ),
        ),
        forms=(FormsCase(name="mixed", adapter_ranks=(3, 3, 7), bgmv_at_least=1e-9, mbgmv_at_most=1e9),),
        fit=(FitCase(batch_sizes=(1, 3), largest_ranks=(2, 6), num_layers=2, r2_at_least=None),),
        loads=(LoadCase(lora_rank=5, layer_at_most=1e9),),
    )
    assert recipe.lora[1].adapter_ranks == (4, 4, 4)


def test_defaults(tmp_path: Path) -> None:
    lines = ('kind = "kernels"', 'description = "d"', 'base = "llama2-7b"', "[[products]]", "tokens = 1")
    recipe = load_any_recipe(write_kernels(tmp_path, "\n".join(lines)))
    assert isinstance(recipe, KernelRecipe)
    assert (recipe.base, recipe.device, recipe.dtype, recipe.repeats) == ("llama2-7b", "auto", "bfloat16", 9)
    assert (recipe.modules, recipe.lora) == ((), ())


def test_the_embedded_recipe_requires_what_was_promised() -> None:
    recipe = load_any_recipe(find_recipe("kernels"))
    assert isinstance(recipe, KernelRecipe)
    assert (recipe.base, recipe.device, recipe.dtype) == ("llama2-7b", "cuda", "bfloat16")
    assert {case.name: case.limits.at_most_us for case in recipe.products}["1 token"] == 102
    assert {case.name: case.limits.at_most_us for case in recipe.attention}["decode, 1 x 512"] == 8
    unequal, equal = recipe.forms
    assert (sorted(unequal.adapter_ranks), unequal.bgmv_at_least) == ([8] * 31 + [128], 3.0)
    assert (equal.adapter_ranks, equal.mbgmv_at_most) == ((32,) * 32, 1.1)
    assert recipe.fit[0].r2_at_least == 0.96
    assert (recipe.loads[0].lora_rank, recipe.loads[0].layer_at_most) == (64, 1.1)


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("repeats = 2", "repeats = 0", "'repeats' must be at least 1"),
        ("repeats = 2", "repeat = 2", "unknown key 'repeat'; did you mean 'repeats'?"),
        ('device = "cpu"', 'device = "tpu"', "'device' must be one of"),
        ("tokens = 3", "tokens = 0", r"\[\[products\]\]: 'tokens' must be at least 1"),
        ("tokens = 3", "tokens = 1", "'products' must be tables that differ in their name or sizes"),
        ("tokens = 3", "tokens = 3\nrequests = 1", r"\[\[products\]\]: unknown key 'requests'"),
        ("at_most_us = 1e9", "at_most_us = 0", "'at_most_us' must be a number above zero"),
        ("context_tokens = 21", "", "'context_tokens' is missing"),
        ('phase = "prefill"', 'phase = "both"', "'phase' must be one of decode, prefill"),
        ("tokens = 4\nadapters = 2", "tokens = 5\nadapters = 2", r"multiple of 'adapters' \(2\)"),
        ("lora_ranks = [2, 5]", "lora_ranks = [2, 5, 6]", "no longer than 'adapters'"),
        ("lora_ranks = [4]", "lora_ranks = [0]", "'lora_ranks' must be a list of whole numbers above zero"),
        ('name = "prefill"', 'name = "decode"', "'lora' must be tables that differ"),
        ("{ adapters = 1, lora_rank = 7 }", "{ adapters = 1 }", "'lora_rank' is missing"),
        (
            "{ adapters = 1, lora_rank = 7 }",
            "{ adapters = 1, lora_rank = 7, alpha = 1 }",
            r"\[\[mix\]\]: unknown key 'alpha'",
        ),
        ("mix = [{ adapters = 2, lora_rank = 3 }, { adapters = 1, lora_rank = 7 }]", "", "'mix' is missing"),
        ("largest_ranks = [2, 6]", "largest_ranks = [2]", "at least three different products"),
        ("largest_ranks = [2, 6]", "largest_ranks = [2, 6, 2]", "'largest_ranks' must be a list without rep"),
        (
            "batch_sizes = [1, 3]",
            "batch_sizes = [1, 1, 3]",
            "'batch_sizes' must be a list without repetition",
        ),
        ("layers = 2", "layers = 2\nr2_at_least = 1.5", "'r2_at_least' must be at most 1"),
        ("layers = 2", "layers = 0", "'layers' must be at least 1"),
        ("lora_rank = 5", "rank = 5", "'lora_rank' is missing"),
        ('"q_proj", ', '"q", ', "'modules' must be a list of modules without repetition"),
        ('modules = ["v_proj", "q_proj", "down_proj"]', "", "'modules' is missing"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in TINY
    with pytest.raises(OptionError, match=fragment):
        load_any_recipe(write_kernels(tmp_path, TINY.replace(old, new, 1)))


def test_modules_without_adapters_are_refused(tmp_path: Path) -> None:
    text = HEAD + 'modules = ["q_proj"]\n[[products]]\ntokens = 1\n'
    with pytest.raises(OptionError, match="'modules' has no meaning without a section that has adapters"):
        load_any_recipe(write_kernels(tmp_path, text))


def test_nothing_to_measure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="'products' is missing; it must be there, or another section"):
        load_any_recipe(write_kernels(tmp_path, HEAD))


def test_layers_in_a_name() -> None:
    names = [
        FitCase(batch_sizes=(4,), largest_ranks=(8,), num_layers=num_layers, r2_at_least=None).name
        for num_layers in (None, 1, 2)
    ]
    assert names == [
        "batches to 4, ranks to 8",
        "batches to 4, ranks to 8, 1 layer",
        "batches to 4, ranks to 8, 2 layers",
    ]
