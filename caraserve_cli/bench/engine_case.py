"""What the kinds of recipes that measure the engine alone have in common: its options, and cases of requests
with random content. Knows no torch and starts nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypedDict, TypeVar, cast, get_args

from caraserve_cli.bench.recipe import DEVICES, DTYPES
from caraserve_cli.bench.recipe_file import base_beside
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.fleet.options import DeviceName, DtypeName, LoraKernel, ReplicaOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCase:
    """Requests that are all there from the start, and the engine that answers them.

    Attributes:
        num_adapters: request i has adapter i % `num_adapters`; 0 for the base alone.
        lora_ranks: adapter i has rank i % their number; empty without adapters, as is `modules`.
        output_tokens: of every answer, EOS ignored.
        cold: the adapters are in host memory, and none is on the device, when the clock starts. Otherwise
            they are on the device if they all fit there.
        peft: whether transformers + PEFT is measured on the same work.
        options: of the replica; cases with equal ones share it.
    """

    name: str
    num_requests: int
    num_adapters: int
    lora_ranks: tuple[int, ...]
    modules: tuple[str, ...]
    prompt_tokens: int
    output_tokens: int
    cold: bool
    peft: bool
    options: ReplicaOptions

    @property
    def peft_name(self) -> str:
        """What `peft` measures: without adapters it is transformers alone."""
        return "transformers + PEFT" if self.num_adapters else "transformers"


_Case_co = TypeVar("_Case_co", bound=EngineCase, covariant=True)
_Case = TypeVar("_Case", bound=EngineCase)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecipe(Generic[_Case_co]):
    """One benchmark of the engine alone; the weights are random.

    Attributes:
        options: what the cases' options have in common.
        warmups: whole runs of each case before the first measured one.
        repeats: measured runs of each case.
        cases: at least one, no two of one name.
    """

    name: str
    description: str
    options: ReplicaOptions
    warmups: int
    repeats: int
    cases: tuple[_Case_co, ...]


class TopKeys(TypedDict):
    """What the top of a recipe of every kind says."""

    name: str
    description: str
    options: ReplicaOptions
    warmups: int
    repeats: int


class CommonKeys(TypedDict):
    """What cases of every kind say: how many requests have which adapters, and who answers them."""

    name: str
    num_requests: int
    num_adapters: int
    lora_ranks: tuple[int, ...]
    modules: tuple[str, ...]
    peft: bool
    options: ReplicaOptions


def parse_top(table: RecipeTable, path: Path, options: ReplicaOptions, *, repeats: int) -> TopKeys:
    """What a recipe's top says besides; `repeats` where it does not say how many.

    Raises:
        OptionError: a wrong value.
    """
    return TopKeys(
        name=path.stem,
        description=table.text("description"),
        options=options,
        warmups=table.count("warmups", 1, low=0),
        repeats=table.count("repeats", repeats),
    )


def parse_options(table: RecipeTable, path: Path, *, prefix_caching: bool = True) -> ReplicaOptions:
    """What a recipe's top says of the replicas. Without `prefix_caching` where all that is compared gets the
    same prompts, and none may find what another has left of them.

    Raises:
        OptionError: a wrong value.
    """
    options = ReplicaOptions(
        base=base_beside(path, table.text("base")),
        weights="random",
        device=cast("DeviceName", table.choice("device", DEVICES, "auto")),
        dtype=cast("DtypeName", table.choice("dtype", DTYPES, "bfloat16")),
        host_adapter_memory=table.size("host_adapter_memory", None),
        prefix_caching=prefix_caching,
    )
    return parse_engine(table, options)


def parse_cases(table: RecipeTable, parse_case: Callable[[RecipeTable], _Case]) -> tuple[_Case, ...]:
    """All cases of a recipe.

    Raises:
        OptionError: there is none, or two have the same name.
    """
    cases: dict[str, _Case] = {}
    for each in table.tables("case"):
        case = parse_case(each)
        if case.name in cases:
            raise each.wrong("name", "different in every case", case.name)
        cases[case.name] = case
    if not cases:
        raise table.wrong("case", "at least one table, written [[case]]", None)
    return tuple(cases.values())


def parse_common(table: RecipeTable, options: ReplicaOptions, *, distinct: bool = False) -> CommonKeys:
    """The keys that cases of every kind have; `options` are the recipe's.

    `distinct`: there is an adapter at least, and each request has its own where their number is left out.
    Where they are drawn by 'popularity' there may be more of them than requests.

    Raises:
        OptionError: a wrong value.
    """
    num_requests = table.count("requests", None)
    num_adapters = table.count("adapters", num_requests if distinct else None, low=int(distinct))
    if num_adapters > num_requests and not (distinct and "popularity" in table.values):
        raise table.wrong("adapters", "at most 'requests', so that each is used", num_adapters)
    lora_ranks, modules = _parse_sizes(table, num_adapters)
    table.refuse("host_adapter_memory", "in a case, since all cases share the adapters in host memory")
    return CommonKeys(
        name=table.text("name"),
        num_requests=num_requests,
        num_adapters=num_adapters,
        lora_ranks=lora_ranks,
        modules=modules,
        peft=table.flag("peft"),
        options=parse_engine(table, options),
    )


def parse_engine(table: RecipeTable, options: ReplicaOptions) -> ReplicaOptions:
    """`options` with those in their place that a table names.

    Raises:
        OptionError: a wrong value.
    """
    return dataclasses.replace(
        options,
        gpu_memory=table.size("gpu_memory", options.gpu_memory),
        kv_memory=table.size("kv_memory", options.kv_memory),
        adapter_memory=table.size("adapter_memory", options.adapter_memory),
        max_running=table.count("max_running", options.max_running),
        max_batch_tokens=table.count("max_batch_tokens", options.max_batch_tokens),
        cpu_workers=table.optional_count("cpu_workers") or options.cpu_workers,
        prefill_chunk_tokens=table.count("prefill_chunk_tokens", options.prefill_chunk_tokens),
        lora_kernel=cast(
            "LoraKernel", table.choice("lora_kernel", get_args(LoraKernel), options.lora_kernel)
        ),
    )


def _parse_sizes(table: RecipeTable, num_adapters: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    if not num_adapters:
        for key in ("lora_ranks", "modules"):
            table.refuse(key, "where 'adapters' is 0")
        return (), ()
    lora_ranks = table.counts("lora_ranks")
    if len(lora_ranks) > num_adapters:
        raise table.wrong("lora_ranks", "no longer than 'adapters', so that each is used", list(lora_ranks))
    return lora_ranks, table.lora_modules("modules")
