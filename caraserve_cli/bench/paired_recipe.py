"""Which steps of the engine are measured beside steps of a reference, as a TOML file says it. Every key is
honoured or refused by name.

    kind = "paired"
    description = "one line for `caraserve bench --list`"
    device = "cpu"                      # the only one: on a GPU steps overlap, and no two are alone
    dtype = "float32"
    batch_size = 32                     # the first so many requests, all in one batch
    repeats = 2                         # passes over every case
    [workload]                          # as in a comparison; `output_tokens` must be there
    base = "../sample_data/base"
    adapters = ["../sample_data/adapters"]
    requests = "../sample_data/requests.jsonl"
    output_tokens = 32
    [[case]]
    name = "mixed adapters"             # beside PEFT's mixed batch
    [[case]]
    name = "base alone"
    without_adapters = true             # the same requests to the base, beside transformers

Both sides decode the same batch in lockstep: the reference's step k, ours, the reference's step k + 1, and so
on. What disturbs the machine for longer than a step disturbs both, so that their ratio is steady where
neither time is. Knows no torch and starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from caraserve_cli.bench.recipe import DTYPES, Recipe, WorkloadSpec, parse_workload
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.bench.system import CARASERVE
from caraserve_cli.fleet.options import DtypeName

PAIRED = "paired"
_PEFT, _TRANSFORMERS = "peft", "transformers"


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedCase:
    """One batch; `without_adapters` gives all of its requests to the base."""

    name: str
    without_adapters: bool

    @property
    def reference(self) -> str:
        """The package that answers beside the engine."""
        return _TRANSFORMERS if self.without_adapters else _PEFT


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedRecipe:
    """One benchmark.

    Attributes:
        repeats: measured passes over every case; one shorter pass comes before.
    """

    name: str
    description: str
    workload: WorkloadSpec
    batch_size: int
    dtype: DtypeName
    repeats: int
    cases: tuple[PairedCase, ...]

    @property
    def output_tokens(self) -> int:
        """Of every answer."""
        assert self.workload.output_tokens is not None, "checked when it was read"
        return self.workload.output_tokens

    @property
    def comparison(self) -> Recipe:
        """What reads the workload and starts a replica."""
        return Recipe(
            name=self.name,
            description=self.description,
            workload=self.workload,
            systems=(CARASERVE,),
            batch_size=self.batch_size,
            device="cpu",
            dtype=self.dtype,
            warmups=0,
            repeats=self.repeats,
            requirements=(),
        )


def skipped_cases(recipe: PairedRecipe) -> dict[str, str]:
    """Name of each case whose reference is not installed → what to install."""
    if find_spec(_PEFT) is not None:
        return {}
    return {
        case.name: "PEFT is not installed; run pip install 'caraserve[test]', in a clone '.[test]'"
        for case in recipe.cases
        if case.reference == _PEFT
    }


def parse_paired(table: RecipeTable, path: Path) -> PairedRecipe:
    """The benchmark of pairs in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (PAIRED,), PAIRED)
    table.choice("device", ("cpu",), "cpu")
    workload_table = table.table("workload")
    batch_size = table.count("batch_size", None)
    workload_table.refuse("limit", "beside 'batch_size', which says how many requests are answered")
    if workload_table.optional_count("output_tokens") in (None, 1):
        raise workload_table.wrong("output_tokens", "at least 2, since the prompt yields the first", None)
    cases: dict[str, PairedCase] = {}
    for each in table.tables("case"):
        case = PairedCase(name=each.text("name"), without_adapters=each.flag("without_adapters"))
        each.close()
        if case.name in cases:
            raise each.wrong("name", "different in every case", case.name)
        cases[case.name] = case
    if not cases:
        raise table.wrong("case", "at least one table, written [[case]]", None)
    recipe = PairedRecipe(
        name=path.stem,
        description=table.text("description"),
        workload=parse_workload(workload_table, path, limit=batch_size),
        batch_size=batch_size,
        dtype=cast("DtypeName", table.choice("dtype", DTYPES, "float32")),
        repeats=table.count("repeats", 2),
        cases=tuple(cases.values()),
    )
    table.close()
    return recipe
