"""What a throughput benchmark measures, as its TOML file says it. Every key is honoured or refused by name.

    kind = "throughput"
    description = "one line for `caraserve bench --list`"
    base = "llama2-7b"                    # a folder beside the recipe, or what `--base` takes; random weights
    device = "cuda"
    dtype = "bfloat16"
    prompt_tokens = 128
    output_tokens = 128                   # every answer this long, EOS ignored
    warmups = 1                           # whole runs of each case before the first measured one
    repeats = 3                           # measured runs of each case
    host_adapter_memory = "20GB"          # all adapters of all cases must fit
    max_batch_tokens = 8192               # optional, as other options of an engine; a case may have its own
    [[case]]
    name = "32 requests, 32 adapters"
    requests = 32                         # all there from the start
    adapters = 32                         # request i has adapter i % 32; 0: the base alone
    lora_ranks = [8, 16, 32, 64]          # adapter i has the rank i % 4
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    cold = true                           # no adapter on the device when the clock starts
    adapter_memory = "4.3GB"
    at_least = 4700                       # median output tokens a second
    peft = true                           # measure transformers + PEFT on the same work too
    vllm = true                           # and vLLM, where it is installed

Knows no torch and starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caraserve_cli.bench.engine_case import (
    EngineCase,
    EngineRecipe,
    parse_cases,
    parse_common,
    parse_options,
    parse_top,
)
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.fleet.options import ReplicaOptions

THROUGHPUT = "throughput"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputCase(EngineCase):
    """One case.

    Attributes:
        vllm: whether vLLM is measured on the same work, where it is installed.
        at_least: output tokens a second that the median must reach; None where nothing is required.
    """

    vllm: bool
    at_least: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputRecipe(EngineRecipe[ThroughputCase]):
    """One benchmark of the engine's output tokens a second, whose cases all have the same lengths."""

    prompt_tokens: int
    output_tokens: int


def parse_throughput(table: RecipeTable, path: Path) -> ThroughputRecipe:
    """The throughput benchmark in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (THROUGHPUT,), THROUGHPUT)
    options = parse_options(table, path)
    prompt_tokens, output_tokens = table.count("prompt_tokens", None), table.count("output_tokens", None)
    recipe = ThroughputRecipe(
        **parse_top(table, path, options, repeats=3),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cases=parse_cases(table, lambda each: _parse_case(each, options, prompt_tokens, output_tokens)),
    )
    table.close()
    return recipe


def _parse_case(
    table: RecipeTable, options: ReplicaOptions, prompt_tokens: int, output_tokens: int
) -> ThroughputCase:
    common = parse_common(table, options)
    if not common["num_adapters"]:
        table.refuse("cold", "where 'adapters' is 0")
    case = ThroughputCase(
        **common,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cold=table.flag("cold"),
        vllm=table.flag("vllm"),
        at_least=table.optional_positive("at_least"),
    )
    table.close()
    return case
