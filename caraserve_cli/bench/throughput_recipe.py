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

Knows no torch and starts nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from caraserve_cli.bench.recipe import DEVICES, DTYPES
from caraserve_cli.bench.recipe_file import base_beside
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.core import LORA_MODULES
from caraserve_cli.fleet.options import DeviceName, DtypeName, ReplicaOptions

THROUGHPUT = "throughput"


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputCase:
    """Requests that are all there from the start, and the engine that answers them.

    Attributes:
        num_adapters: request i has adapter i % `num_adapters`; 0 for the base alone.
        lora_ranks: adapter i has rank i % their number; empty without adapters, as is `modules`.
        cold: the adapters are in host memory, and none is on the device, when the clock starts. Otherwise
            they are on the device if they all fit there.
        at_least: output tokens a second that the median must reach; None where nothing is required.
        options: of the replica; cases with equal ones share it.
    """

    name: str
    num_requests: int
    num_adapters: int
    lora_ranks: tuple[int, ...]
    modules: tuple[str, ...]
    cold: bool
    at_least: float | None
    options: ReplicaOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputRecipe:
    """One benchmark of the engine alone; the weights are random.

    Attributes:
        options: what the cases' options have in common.
        warmups: whole runs of each case before the first measured one.
        repeats: measured runs of each case.
    """

    name: str
    description: str
    prompt_tokens: int
    output_tokens: int
    options: ReplicaOptions
    warmups: int
    repeats: int
    cases: tuple[ThroughputCase, ...]


def parse_throughput(table: RecipeTable, path: Path) -> ThroughputRecipe:
    """The throughput benchmark in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (THROUGHPUT,), THROUGHPUT)
    options = ReplicaOptions(
        base=base_beside(path, table.text("base")),
        weights="random",
        device=cast("DeviceName", table.choice("device", DEVICES, "auto")),
        dtype=cast("DtypeName", table.choice("dtype", DTYPES, "bfloat16")),
        host_adapter_memory=table.size("host_adapter_memory", None),
    )
    options = _parse_engine(table, options)
    recipe = ThroughputRecipe(
        name=path.stem,
        description=table.text("description"),
        prompt_tokens=table.count("prompt_tokens", None),
        output_tokens=table.count("output_tokens", None),
        options=options,
        warmups=table.count("warmups", 1, low=0),
        repeats=table.count("repeats", 3),
        cases=_parse_cases(table, options),
    )
    table.close()
    return recipe


def _parse_engine(table: RecipeTable, options: ReplicaOptions) -> ReplicaOptions:
    """`options` with those in their place that a table names."""
    return dataclasses.replace(
        options,
        gpu_memory=table.size("gpu_memory", options.gpu_memory),
        kv_memory=table.size("kv_memory", options.kv_memory),
        adapter_memory=table.size("adapter_memory", options.adapter_memory),
        max_running=table.count("max_running", options.max_running),
        max_batch_tokens=table.count("max_batch_tokens", options.max_batch_tokens),
        prefill_chunk_tokens=table.count("prefill_chunk_tokens", options.prefill_chunk_tokens),
    )


def _parse_cases(table: RecipeTable, options: ReplicaOptions) -> tuple[ThroughputCase, ...]:
    cases: dict[str, ThroughputCase] = {}
    for each in table.tables("case"):
        case = _parse_case(each, options)
        if case.name in cases:
            raise each.wrong("name", "different in every case", case.name)
        cases[case.name] = case
    if not cases:
        raise table.wrong("case", "at least one table, written [[case]]", None)
    return tuple(cases.values())


def _parse_case(table: RecipeTable, options: ReplicaOptions) -> ThroughputCase:
    num_requests, num_adapters = table.count("requests", None), table.count("adapters", None, low=0)
    if num_adapters > num_requests:
        raise table.wrong("adapters", "at most 'requests', so that each is used", num_adapters)
    lora_ranks, modules = _parse_adapters(table, num_adapters)
    table.refuse("host_adapter_memory", "in a case, since all cases share the adapters in host memory")
    case = ThroughputCase(
        name=table.text("name"),
        num_requests=num_requests,
        num_adapters=num_adapters,
        lora_ranks=lora_ranks,
        modules=modules,
        cold=table.flag("cold"),
        at_least=table.optional_positive("at_least"),
        options=_parse_engine(table, options),
    )
    table.close()
    return case


def _parse_adapters(table: RecipeTable, num_adapters: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if not num_adapters:
        for key in ("lora_ranks", "modules", "cold"):
            table.refuse(key, "where 'adapters' is 0")
        return (), ()
    lora_ranks, modules = table.counts("lora_ranks"), table.texts("modules")
    if len(lora_ranks) > num_adapters:
        raise table.wrong("lora_ranks", "no longer than 'adapters', so that each is used", list(lora_ranks))
    if not modules or len(set(modules)) < len(modules) or not set(modules) <= set(LORA_MODULES):
        known = f"a list of modules without repetition, from {', '.join(LORA_MODULES)}"
        raise table.wrong("modules", known, list(modules))
    return lora_ranks, modules
