from __future__ import annotations

from pathlib import Path

import pytest

from caraserve_cli.bench.catalogue import find_recipe
from caraserve_cli.bench.recipe_kinds import load_any_recipe
from caraserve_cli.bench.throughput_recipe import ThroughputCase, ThroughputRecipe
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.options import ReplicaOptions
from tests.bench.throughput_recipes import TINY, write_throughput
from tests.cli.command import SAMPLE


def load(path: Path) -> ThroughputRecipe:
    recipe = load_any_recipe(path)
    assert isinstance(recipe, ThroughputRecipe)
    return recipe


def test_every_key_is_read(tmp_path: Path) -> None:
    text = TINY.replace(
        "[[case]]",
        'gpu_memory = "0.5"\nadapter_memory = "1GB"\nmax_running = 7\nmax_batch_tokens = 70\n'
        'prefill_chunk_tokens = 35\nlora_kernel = "bgmv"\n[[case]]\nmax_running = 6\nkv_memory = "2MB"'
        "\npeft = true\nvllm = true",
        1,
    )
    recipe = load(write_throughput(tmp_path, text))
    assert (recipe.name, recipe.description) == ("mine", "a tiny benchmark")
    assert (recipe.prompt_tokens, recipe.output_tokens, recipe.warmups, recipe.repeats) == (6, 4, 1, 2)
    common = {
        "base": str(SAMPLE / "base"),
        "weights": "random",
        "device": "cpu",
        "dtype": "float32",
        "gpu_memory": "0.5",
        "adapter_memory": "1GB",
        "host_adapter_memory": "1MB",
        "max_batch_tokens": 70,
        "prefill_chunk_tokens": 35,
        "lora_kernel": "bgmv",
    }
    assert recipe.options == ReplicaOptions(**common, kv_memory="4MB", max_running=7)
    base, adapters, cold = recipe.cases
    assert base == ThroughputCase(
        name="base",
        num_requests=3,
        num_adapters=0,
        lora_ranks=(),
        modules=(),
        prompt_tokens=6,
        output_tokens=4,
        cold=False,
        peft=True,
        vllm=True,
        at_least=1e-6,
        options=ReplicaOptions(**common, kv_memory="2MB", max_running=6),
    )
    assert (adapters.lora_ranks, adapters.modules) == ((2, 5), ("q_proj", "v_proj"))
    assert (adapters.cold, adapters.at_least, adapters.options) == (False, None, recipe.options)
    assert cold.cold
    assert not adapters.peft
    assert not adapters.vllm


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ('"throughput"', '"latency"', "'kind' must be one of arrivals, assist, cluster, comparison, "),
        ("repeats = 2", "repeat = 2", "unknown key 'repeat'; did you mean 'repeats'?"),
        ("prompt_tokens = 6", "", "'prompt_tokens' is missing"),
        ("output_tokens = 4", "output_tokens = 0", "'output_tokens' must be at least 1, got 0"),
        ('device = "cpu"', 'device = "tpu"', "'device' must be one of auto, cpu, cuda"),
        ('dtype = "float32"', 'dtype = "int8"', "'dtype' must be one of float32, bfloat16, float16"),
        ('kv_memory = "4MB"', 'kv_memory = "4XB"', "'kv_memory': '4XB' is not a size"),
        ('kv_memory = "4MB"', "kv_memory = 4", "'kv_memory' must be a text, got 4"),
        ("requests = 3", "", "[[case]]: 'requests' is missing"),
        ("adapters = 0", "adapters = -1", "'adapters' must be at least 0, got -1"),
        ("adapters = 0", "adapters = 4", "'adapters' must be at most 'requests'"),
        (
            "adapters = 0",
            "adapters = 0\nlora_ranks = [2]",
            "'lora_ranks' has no meaning where 'adapters' is 0",
        ),
        ("adapters = 0", "adapters = 0\ncold = true", "'cold' has no meaning where 'adapters' is 0"),
        (
            "adapters = 0",
            'host_adapter_memory = "1GB"\nadapters = 0',
            "'host_adapter_memory' has no meaning in",
        ),
        ("adapters = 0", "adapters = 0\nwarmups = 1", "[[case]]: unknown key 'warmups'"),
        ("lora_ranks = [2, 5]", "lora_ranks = [2, 0]", "'lora_ranks' must be a list of whole numbers above"),
        ("lora_ranks = [2, 5]", "lora_ranks = []", "'lora_ranks' must be a list of whole numbers above"),
        ("lora_ranks = [2, 5]", "lora_ranks = [true]", "'lora_ranks' must be a list of whole numbers above"),
        ("lora_ranks = [2, 5]", "lora_ranks = [2, 5, 7]", "'lora_ranks' must be no longer than 'adapters'"),
        ('["q_proj", "v_proj"]', '["q_proj", "qkv"]', "'modules' must be a list of modules without rep"),
        ('["q_proj", "v_proj"]', '["q_proj", "q_proj"]', "'modules' must be a list of modules without rep"),
        ('["q_proj", "v_proj"]', "[]", "'modules' must be a list of modules without rep"),
        ("cold = true", 'lora_kernel = "sgmv"', "'lora_kernel' must be one of mbgmv, bgmv, got 'sgmv'"),
        ("cold = true", "cold = 1", "'cold' must be true or false, got 1"),
        ("cold = true", 'vllm = "0.14"', "'vllm' must be true or false, got '0.14'"),
        ("at_least = 1e-6", "at_least = 0", "'at_least' must be a number above zero, got 0.0"),
        ('name = "cold"', 'name = "base"', "'name' must be different in every case, got 'base'"),
    ],
)
def test_what_cannot_be_honoured_is_named(tmp_path: Path, old: str, new: str, fragment: str) -> None:
    assert old in TINY
    with pytest.raises(OptionError) as refused:
        load(write_throughput(tmp_path, TINY.replace(old, new, 1)))
    assert fragment in str(refused.value)
    assert "mine.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_without_cases_there_is_nothing_to_measure(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'case' is missing; it must be at least one table, written \[\["):
        load(write_throughput(tmp_path, TINY.split("[[case]]")[0]))


def test_the_embedded_recipe_requires_what_was_promised() -> None:
    """One H200, 128 tokens in and out."""
    recipe = load(find_recipe("throughput"))
    assert (recipe.prompt_tokens, recipe.output_tokens) == (128, 128)
    assert [(case.num_requests, case.num_adapters, case.cold, case.at_least) for case in recipe.cases] == [
        (1, 0, False, 230),
        (32, 0, False, 5500),
        (256, 0, False, 13000),
        (1, 1, False, 210),
        (32, 32, False, 4700),
        (256, 32, False, 11500),
        (256, 256, True, 9500),
        (256, 96, False, 9000),
        (256, 256, False, 7000),
    ]
    assert [case.options.adapter_memory for case in recipe.cases[-3:]] == ["17.5GB", "4.3GB", "4.3GB"]
    assert [case.name for case in recipe.cases if case.peft] == [
        "1 request, rank 64",
        "32 requests, 32 adapters",
    ]
    # Where vLLM's slots would not take the same memory, or its adapters wait elsewhere, nothing is compared.
    assert [case.vllm for case in recipe.cases] == [True] * 6 + [False] * 3
