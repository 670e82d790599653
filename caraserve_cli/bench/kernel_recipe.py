"""Which operators are measured alone, as a TOML file says it. Every key is honoured or refused by name.

    kind = "kernels"
    description = "one line for `caraserve bench --list`"
    base = "llama2-7b"                    # whose shape; a folder beside the recipe, or what `--base` takes
    device = "cuda"
    dtype = "bfloat16"
    repeats = 9                           # measured runs of each operator
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
    at_most = 1.1                         # times one contiguous copy of as many bytes, whole and by layer

Knows no torch and starts nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol, TypeVar, cast

from caraserve_cli.bench.recipe import DEVICES, DTYPES
from caraserve_cli.bench.recipe_file import base_beside
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.core import LORA_MODULES
from caraserve_cli.fleet.options import DeviceName, DtypeName

KERNELS = "kernels"

_WITHOUT_ADAPTERS = ("products", "attention")
_WITH_ADAPTERS = ("lora", "forms", "fit", "loads")


class Phase(StrEnum):
    """Of a step: a token a request, or prompts."""

    DECODE = "decode"
    PREFILL = "prefill"


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """What an operator may take at most: microseconds, times its floor; None where nothing is required."""

    at_most_us: float | None
    at_most: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductCase:
    """The products of a layer with so many tokens."""

    num_tokens: int
    limits: TimeLimits

    @property
    def name(self) -> str:
        return f"{self.num_tokens:,} tokens" if self.num_tokens > 1 else "1 token"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """Attention of a layer over contexts of the same length."""

    phase: Phase
    num_requests: int
    context_tokens: int
    limits: TimeLimits

    @property
    def name(self) -> str:
        return f"{self.phase}, {self.num_requests} x {self.context_tokens:,}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraCase:
    """LoRA of a step: neighbouring `num_tokens` / `num_adapters` tokens for each adapter."""

    name: str
    phase: Phase
    num_tokens: int
    num_adapters: int
    lora_ranks: tuple[int, ...]
    limits: TimeLimits

    @property
    def adapter_ranks(self) -> tuple[int, ...]:
        """The rank of each adapter."""
        return tuple(self.lora_ranks[index % len(self.lora_ranks)] for index in range(self.num_adapters))


@dataclass(frozen=True, slots=True, kw_only=True)
class FormsCase:
    """A decoding step of adapters with these ranks, unpadded (mbgmv) and padded (bgmv)."""

    name: str
    adapter_ranks: tuple[int, ...]
    bgmv_at_least: float | None
    mbgmv_at_most: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FitCase:
    """Decoding steps of all `batch_sizes`, largest ranks and mixes of ranks, and a line through their times.

    Attributes:
        num_layers: None for those of the base.
    """

    batch_sizes: tuple[int, ...]
    largest_ranks: tuple[int, ...]
    num_layers: int | None
    r2_at_least: float | None

    @property
    def name(self) -> str:
        layers = "" if self.num_layers is None else f", {self.num_layers} layers"
        return f"batches to {max(self.batch_sizes)}, ranks to {max(self.largest_ranks)}{layers}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadCase:
    """An adapter's way from pinned memory to the device."""

    lora_rank: int
    at_most: float | None

    @property
    def name(self) -> str:
        return f"rank {self.lora_rank}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelRecipe:
    """One benchmark of operators alone, on random data; at least one case.

    Attributes:
        base: what `--base` takes; only its shape counts.
        repeats: measured runs of each operator.
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
    modules = table.texts("modules")
    if not modules or len(set(modules)) < len(modules) or not set(modules) <= set(LORA_MODULES):
        known = f"a list of modules without repetition, from {', '.join(LORA_MODULES)}"
        raise table.wrong("modules", known, list(modules))
    return tuple(sorted(modules, key=LORA_MODULES.index))


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
    batch_sizes, largest_ranks = table.counts("batch_sizes"), table.counts("largest_ranks")
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
    return LoadCase(lora_rank=table.count("lora_rank", None), at_most=table.optional_positive("at_most"))


def _parse_limits(table: RecipeTable) -> TimeLimits:
    return TimeLimits(table.optional_positive("at_most_us"), table.optional_positive("at_most"))


def _parse_phase(table: RecipeTable) -> Phase:
    return Phase(table.choice("phase", tuple(Phase), Phase.DECODE))
