from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.bench.step_recipe import Measure, StepCase, StepRecipe
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.options import ReplicaOptions
from tests.bench.step_recipes import TINY_STEPS
from tests.bench.throughput_recipes import write_throughput
from tests.cli.command import SAMPLE


def load(path: Path) -> StepRecipe:
    recipe = load_any_recipe(path)
    assert isinstance(recipe, StepRecipe)
    return recipe


def test_every_key_is_read(tmp_path: Path) -> None:
    text = TINY_STEPS.replace("at_most = 1e9", "at_most = 1e9\npeft = true", 1).replace(
        'name = "prefill"', 'name = "prefill"\nlora_kernel = "bgmv"\nmax_batch_tokens = 24'
    )
    recipe = load(write_throughput(tmp_path, text))
    assert (recipe.name, recipe.description) == ("mine", "a tiny benchmark")
    assert (recipe.warmups, recipe.repeats) == (1, 2)
    common = {
        "base": str(SAMPLE / "base"),
        "weights": "random",
        "device": "cpu",
        "dtype": "float32",
        "kv_memory": "4MB",
        "host_adapter_memory": "1MB",
        "max_running": 4,
    }
    assert recipe.options == ReplicaOptions(**common, max_batch_tokens=12)
    base, adapters, prefill = recipe.cases
    assert base == StepCase(
        name="base",
        num_requests=3,
        num_adapters=0,
        lora_ranks=(),
        modules=(),
        prompt_tokens=6,
        output_tokens=8,
        cold=False,
        peft=True,
        options=recipe.options,
        measure=Measure.DECODE,
        at_most=1e9,
        without=None,
        lora_at_most=None,
        lora_share_at_most=None,
        rate_at_least=None,
    )
    assert (adapters.lora_ranks, adapters.modules) == ((2, 5), ("q_proj", "v_proj"))
    assert (adapters.without, adapters.lora_at_most, adapters.lora_share_at_most) == ("base", 1e9, 1.0)
    assert (prefill.measure, prefill.rate_at_least) == (Measure.PREFILL, 1e-9)
    assert prefill.options == ReplicaOptions(**common, max_batch_tokens=24, lora_kernel="bgmv")


WRONG_PAIR = (
    "'without' must be the name of a case without adapters and otherwise with the same work and options"
)


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ("repeats = 2", "repeat = 2", "unknown key 'repeat'; did you mean 'repeats'?"),
        ("repeats = 2", "repeats = 2\nprompt_tokens = 3", "unknown key 'prompt_tokens'"),
        (
            'measure = "decode"',
            'measure = "encode"',
            "'measure' must be one of decode, prefill, got 'encode'",
        ),
        ("prompt_tokens = 6", "", "'prompt_tokens' is missing"),
        ("output_tokens = 8", "output_tokens = 1", "'output_tokens' must be at least 2, since the prompt"),
        ("at_most = 1e9", "at_most = 0", "'at_most' must be a number above zero"),
        ("at_most = 1e9", "at_least = 1e9", "unknown key 'at_least'"),
        ("at_most = 1e9", 'without = "base"', "'without' has no meaning where 'adapters' is 0"),
        ("at_most = 1e9", "lora_at_most = 2.0", "'lora_at_most' has no meaning where 'adapters' is 0"),
        (
            "at_most = 1e9",
            "rate_at_least = 0.5",
            "'rate_at_least' has no meaning where 'measure' is \"decode\"",
        ),
        ('without = "base"', "cold = true", "'lora_at_most' has no meaning without 'without'"),
        ('without = "base"', 'without = "base"\ncold = true', "unknown key 'cold'"),
        ('without = "base"', 'without = ""', "'without' must be a text that is not empty"),
        ('without = "base"', 'without = "case"', f"{WRONG_PAIR}, got 'case'"),
        ('without = "base"', 'without = "adapters"', WRONG_PAIR),
        ('without = "base"', 'without = "base"\nkv_memory = "5MB"', WRONG_PAIR),
        ("requests = 3\nadapters = 2", "requests = 4\nadapters = 2", WRONG_PAIR),
        ("prompt_tokens = 6", "prompt_tokens = 7", WRONG_PAIR),
        ("output_tokens = 8", "output_tokens = 9", WRONG_PAIR),
        ("at_most = 1e9", "vllm = true", "'vllm' has no meaning in a benchmark of steps"),
        ("rate_at_least = 1e-9", "vllm = true", "'vllm' has no meaning in a benchmark of steps"),
        ("rate_at_least = 1e-9", "peft = true", "'peft' has no meaning where 'measure' is \"prefill\""),
        ("rate_at_least = 1e-9", "at_most = 2.0", "'at_most' has no meaning where 'measure' is \"prefill\""),
        (
            "rate_at_least = 1e-9",
            'without = "base"',
            "'without' has no meaning where 'measure' is \"prefill\"",
        ),
        (
            "rate_at_least = 1e-9",
            "max_batch_tokens = 25",
            "'max_batch_tokens' must be at most 24, so that prompts fill a step: 'requests' or "
            "'max_running', the smaller, times 'prompt_tokens' or 'prefill_chunk_tokens', the smaller, got",
        ),
        (
            "rate_at_least = 1e-9",
            "max_batch_tokens = 19\nmax_running = 3",
            "'max_batch_tokens' must be at most 18",
        ),
        ("rate_at_least = 1e-9", "prefill_chunk_tokens = 2", "'max_batch_tokens' must be at most 8"),
        (
            "max_running = 4",
            "max_running = 2",
            "'max_running' must be at least 'requests' (3), which are all to decode in one step, got 2",
        ),
        ('name = "prefill"', 'name = "base"', "'name' must be different in every case, got 'base'"),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in TINY_STEPS
    with pytest.raises(OptionError) as refused:
        load(write_throughput(tmp_path, TINY_STEPS.replace(old, new, 1)))
    assert fragment in str(refused.value)
    assert "mine.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "filled", ["max_batch_tokens = 24", "max_batch_tokens = 23", "prefill_chunk_tokens = 3"]
)
def test_prompts_that_just_fill_a_step(tmp_path: Path, filled: str) -> None:
    """The last one may be split, and each may be."""
    load(write_throughput(tmp_path, TINY_STEPS.replace("rate_at_least = 1e-9", filled)))


def test_the_embedded_recipe_requires_what_was_promised() -> None:
    """One H200, Llama-2-7B's shape, contexts of 512 tokens on average."""
    recipe = load(find_recipe("decode"))
    decode = [case for case in recipe.cases if case.measure is Measure.DECODE]
    assert [(case.num_requests, case.num_adapters, case.at_most) for case in decode] == [
        (1, 0, 1.40),
        (32, 0, 1.35),
        (32, 32, None),
        (256, 0, None),
        (256, 256, None),
    ]
    assert {(case.prompt_tokens, case.output_tokens) for case in decode} == {(480, 65)}
    assert [
        (case.without, case.lora_at_most, case.lora_share_at_most) for case in decode if case.num_adapters
    ] == [("32 requests", 2.0, 0.20), ("256 requests", 1.6, None)]
    (prefill,) = (case for case in recipe.cases if case.measure is Measure.PREFILL)
    assert (prefill.options.max_batch_tokens, prefill.num_adapters, prefill.rate_at_least) == (8192, 32, 0.62)
    of_adapters = {(case.lora_ranks, case.modules) for case in recipe.cases if case.num_adapters}
    assert of_adapters == {((8, 16, 32, 64), ("q_proj", "k_proj", "v_proj", "o_proj"))}
