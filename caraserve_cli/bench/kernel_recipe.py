"""Which operators are measured alone, as a TOML file says it. Every key is honoured or refused by name.

    kind = "kernels"
    description = "one line for `caraserve bench --list`"
    base = "llama2-7b"                    # whose shape; a folder beside the recipe, or what `--base` takes
    device = "cuda"
    dtype = "bfloat16"
    repeats = 9                           # measured runs of each operator at most; of what takes long, fewer
    modules = ["q_proj", "o_proj"]        # that adapters change; left out where no section has adapters
    [[products]]                          # the products of a layer
    tokens = 1
    at_most_us = 102                      # of a layer; a limit, here and below, may be left out
    at_most = 1.1                         # times the floor; both are known to the next two sections too
    [[attention]]                         # of a layer
    phase = "decode"                      # one token a request, or "prefill": all of the context at once
    requests = 32
    context_tokens = 512                  # of each request
    [[lora]]                              # of a step, all layers
    name = "32 distinct"
    phase = "decode"
    tokens = 32                           # spread evenly over the adapters
    adapters = 32
    lora_ranks = [8, 16]                  # adapter i has the rank i % 2
    [[forms]]                             # of a decoding step in both forms, one token an adapter
    name = "31 of rank 8, 1 of rank 128"
    mix = [{ adapters = 31, lora_rank = 8 }, { adapters = 1, lora_rank = 128 }]
    bgmv_at_least = 3.0                   # times the time of mbgmv
    mbgmv_at_most = 1.1                   # times the time of bgmv
    [[fit]]                               # time of a decoding step = alpha · ranks + beta
    batch_sizes = [4, 8]
    largest_ranks = [8, 16]
    layers = 8                            # left out: those of the base
    r2_at_least = 0.96                    # of both forms
    [[loads]]                             # an adapter's way to the device
    lora_rank = 64
    layer_at_most = 1.1                   # times a contiguous copy of as many bytes

Knows no torch and starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, cast

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
from caraserve_cli.bench.recipe import DEVICES, DTYPES
from caraserve_cli.bench.recipe_file import base_beside
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.core import LORA_MODULES
from caraserve_cli.fleet.options import DeviceName, DtypeName

KERNELS = "kernels"

_WITHOUT_ADAPTERS = ("products", "attention")
_WITH_ADAPTERS = ("lora", "forms", "fit", "loads")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecipe:
    """One benchmark of operators alone, on random data; at least one case.

    Attributes:
        base: what `--base` takes; only its shape counts.
        repeats: measured runs of each operator at most; of what takes long there are fewer.
        modules: those that adapters change, in the order of the forward pass; empty without adapters.
    """

    name: str
    description: str
    base: str
    device: DeviceName
    dtype: DtypeName
    repeats: int
    modules: tuple[str, ...]
    products: tuple[ProductCase, ...]
    attention: tuple[AttentionCase, ...]
    lora: tuple[LoraCase, ...]
    forms: tuple[FormsCase, ...]
    fit: tuple[FitCase, ...]
    loads: tuple[LoadCase, ...]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_Case = TypeVar("_Case", bound=_Named)


def parse_kernels(table: RecipeTable, path: Path) -> KernelRecipe:
    """The benchmark of operators in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (KERNELS,), KERNELS)
    recipe = KernelRecipe(
        name=path.stem,
        description=table.text("description"),
        base=base_beside(path, table.text("base")),
        device=cast("DeviceName", table.choice("device", DEVICES, "auto")),
        dtype=cast("DtypeName", table.choice("dtype", DTYPES, "bfloat16")),
        repeats=table.count("repeats", 9),
        products=_parse_section(table, "products", _parse_products),
        attention=_parse_section(table, "attention", _parse_attention),
        lora=_parse_section(table, "lora", _parse_lora),
        forms=_parse_section(table, "forms", _parse_forms),
        fit=_parse_section(table, "fit", _parse_fit),
        loads=_parse_section(table, "loads", _parse_loads),
        modules=_parse_modules(table),
    )
    table.close()
    return recipe


def _parse_section(table: RecipeTable, key: str, parse: Callable[[RecipeTable], _Case]) -> tuple[_Case, ...]:
    cases: dict[str, _Case] = {}
    for each in table.tables(key):
        case = parse(each)
        each.close()
        if case.name in cases:
            raise table.wrong(key, "tables that differ in their name or sizes", case.name)
        cases[case.name] = case
    return tuple(cases.values())


def _parse_modules(table: RecipeTable) -> tuple[str, ...]:
    """After the sections: without adapters nothing changes any module."""
    if not any(table.tables(key) for key in _WITH_ADAPTERS):
        if not any(table.tables(key) for key in _WITHOUT_ADAPTERS):
            raise table.wrong("products", "there, or another section with something to measure", None)
        table.refuse("modules", "without a section that has adapters")
        return ()
    return tuple(sorted(table.lora_modules("modules"), key=LORA_MODULES.index))


def _parse_products(table: RecipeTable) -> ProductCase:
    return ProductCase(num_tokens=table.count("tokens", None), limits=_parse_limits(table))


def _parse_attention(table: RecipeTable) -> AttentionCase:
    return AttentionCase(
        phase=_parse_phase(table),
        num_requests=table.count("requests", None),
        context_tokens=table.count("context_tokens", None),
        limits=_parse_limits(table),
    )


def _parse_lora(table: RecipeTable) -> LoraCase:
    num_tokens, num_adapters = table.count("tokens", None), table.count("adapters", None)
    lora_ranks = table.counts("lora_ranks")
    if num_tokens % num_adapters:
        raise table.wrong("tokens", f"a multiple of 'adapters' ({num_adapters})", num_tokens)
    if len(lora_ranks) > num_adapters:
        raise table.wrong("lora_ranks", "no longer than 'adapters', so that each is used", list(lora_ranks))
    return LoraCase(
        name=table.text("name"),
        phase=_parse_phase(table),
        num_tokens=num_tokens,
        num_adapters=num_adapters,
        lora_ranks=lora_ranks,
        limits=_parse_limits(table),
    )


def _parse_forms(table: RecipeTable) -> FormsCase:
    adapter_ranks: list[int] = []
    for each in table.tables("mix"):
        adapter_ranks += [each.count("lora_rank", None)] * each.count("adapters", None)
        each.close()
    if not adapter_ranks:
        raise table.wrong("mix", "a list such as [{ adapters = 1, lora_rank = 8 }]", None)
    return FormsCase(
        name=table.text("name"),
        adapter_ranks=tuple(adapter_ranks),
        bgmv_at_least=table.optional_positive("bgmv_at_least"),
        mbgmv_at_most=table.optional_positive("mbgmv_at_most"),
    )


def _parse_fit(table: RecipeTable) -> FitCase:
    batch_sizes, largest_ranks = table.distinct_counts("batch_sizes"), table.distinct_counts("largest_ranks")
    if len({size * lora_rank for size in batch_sizes for lora_rank in largest_ranks}) < 3:
        must_be = "such that with 'largest_ranks' there are at least three different products"
        raise table.wrong("batch_sizes", must_be, list(batch_sizes))
    r2_at_least = table.optional_positive("r2_at_least")
    if r2_at_least is not None and r2_at_least > 1:
        raise table.wrong("r2_at_least", "at most 1", r2_at_least)
    return FitCase(
        batch_sizes=batch_sizes,
        largest_ranks=largest_ranks,
        num_layers=table.optional_count("layers"),
        r2_at_least=r2_at_least,
    )


def _parse_loads(table: RecipeTable) -> LoadCase:
    layer_at_most = table.optional_positive("layer_at_most")
    return LoadCase(lora_rank=table.count("lora_rank", None), layer_at_most=layer_at_most)


def _parse_limits(table: RecipeTable) -> TimeLimits:
    return TimeLimits(table.optional_positive("at_most_us"), table.optional_positive("at_most"))


def _parse_phase(table: RecipeTable) -> Phase:
    return Phase(table.choice("phase", tuple(Phase), Phase.DECODE))
