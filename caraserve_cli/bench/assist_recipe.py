"""Which prefills are measured with CPU workers, as a TOML file says it. Every key is honoured or refused by
name.

    kind = "assist"
    description = "one line for `caraserve bench --list`"
    base = "llama2-7b"                    # whose shape, which is also the default
    device = "cuda"
    dtype = "bfloat16"
    warmups = 1                           # of every way of computing a prefill, after one that is checked
    repeats = 9                           # interleaved: each way once, on another adapter
    cpu_workers = 8                       # left out: as many as a replica on this machine has
    modules = ["q_proj", "o_proj"]        # that adapters change
    lora_ranks = [64]                     # every rank with every number of tokens is a case
    prompt_tokens = [16, 128, 256]
    [[require]]                           # of a case; each limit may be left out
    prompt_tokens = 128
    lora_rank = 64
    speedup_at_least = 1.4                # of the workers over torch's threads, from device to device
    peak_share_at_least = 0.2             # of the measured rate of a large product on as many cores
    saved_ms_at_least = 1                 # of a prefill, over explicit synchronisation; on a GPU

Knows no torch and starts nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from caraserve_cli.bench.recipe import DEVICES, DTYPES
from caraserve_cli.bench.recipe_file import base_beside
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.core import LORA_MODULES
from caraserve_cli.fleet.options import DeviceName, DtypeName

ASSIST = "assist"
_DEFAULT_BASE = "llama2-7b"


@dataclass(frozen=True, slots=True)
class AssistLimits:
    """What the recipe requires of a case; None where it requires nothing.

    Attributes:
        speedup_at_least: of the workers over torch's own threads.
        peak_share_at_least: of the rate of a large product that the workers reach.
        saved_ms_at_least: of a prefill, by not synchronising; only a GPU tells it.
    """

    speedup_at_least: float | None = None
    peak_share_at_least: float | None = None
    saved_ms_at_least: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistCase:
    """A prefill of one prompt, whose adapter is computed by CPU workers in every layer."""

    num_tokens: int
    lora_rank: int
    limits: AssistLimits

    @property
    def name(self) -> str:
        return f"{self.num_tokens} {'token' if self.num_tokens == 1 else 'tokens'}, rank {self.lora_rank}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssistRecipe:
    """One benchmark of CPU workers.

    Attributes:
        base: what `--base` takes; only its shape counts.
        modules: those that adapters change, in the order of the forward pass.
        cpu_workers: None for as many as a replica has.
        cases: at least one, ranks first.
    """

    name: str
    description: str
    base: str
    device: DeviceName
    dtype: DtypeName
    modules: tuple[str, ...]
    warmups: int
    repeats: int
    cpu_workers: int | None
    cases: tuple[AssistCase, ...]


def parse_assist(table: RecipeTable, path: Path) -> AssistRecipe:
    """The benchmark of CPU workers in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (ASSIST,), ASSIST)
    device = table.choice("device", DEVICES, "auto")
    recipe = AssistRecipe(
        name=path.stem,
        description=table.text("description"),
        base=base_beside(path, table.optional_text("base") or _DEFAULT_BASE),
        device=cast("DeviceName", device),
        dtype=cast("DtypeName", table.choice("dtype", DTYPES, "bfloat16")),
        modules=tuple(sorted(table.lora_modules("modules"), key=LORA_MODULES.index)),
        warmups=table.count("warmups", 1, low=0),
        repeats=table.count("repeats", 9),
        cpu_workers=table.optional_count("cpu_workers"),
        cases=tuple(_parse_cases(table, device)),
    )
    table.close()
    return recipe


def _parse_cases(table: RecipeTable, device: str) -> Iterator[AssistCase]:
    prompt_tokens, lora_ranks = table.distinct_counts("prompt_tokens"), table.distinct_counts("lora_ranks")
    limits_of: dict[tuple[int, int], AssistLimits] = {}
    for each in table.tables("require"):
        num_tokens, lora_rank = each.count("prompt_tokens", None), each.count("lora_rank", None)
        for key, value, known in (
            ("prompt_tokens", num_tokens, prompt_tokens),
            ("lora_rank", lora_rank, lora_ranks),
        ):
            if value not in known:
                raise each.wrong(key, f"one of those measured, {list(known)}", value)
        if (num_tokens, lora_rank) in limits_of:
            raise table.wrong("require", "tables of different cases", [num_tokens, lora_rank])
        limits_of[num_tokens, lora_rank] = _parse_limits(each, device)
        each.close()
    for lora_rank in lora_ranks:
        for num_tokens in prompt_tokens:
            limits = limits_of.get((num_tokens, lora_rank), AssistLimits())
            yield AssistCase(num_tokens=num_tokens, lora_rank=lora_rank, limits=limits)


def _parse_limits(table: RecipeTable, device: str) -> AssistLimits:
    peak_share = table.optional_positive("peak_share_at_least")
    if peak_share is not None and peak_share > 1:
        raise table.wrong("peak_share_at_least", "at most 1", peak_share)
    if device != "cuda":
        table.refuse("saved_ms_at_least", 'without device = "cuda": on a CPU nothing is synchronised')
    return AssistLimits(
        table.optional_positive("speedup_at_least"), peak_share, table.optional_positive("saved_ms_at_least")
    )
