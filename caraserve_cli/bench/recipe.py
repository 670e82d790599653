"""What a comparison measures, as its TOML file says it. Every key is honoured or refused by name.

    kind = "comparison"                       # which is also what a recipe without a kind is
    description = "one line for `caraserve bench --list`"
    systems = ["caraserve", "peft-mixed"]     # the first one is compared with each of the others
    batch_size = 32                           # requests that a system works on at once
    repeats = 5                               # measured runs of each system, interleaved
    [workload]
    base = "../sample_data/base"              # a folder beside the recipe, or what `--base` takes
    adapters = ["../sample_data/adapters"]
    requests = "peft-requests.jsonl"
    output_tokens = 64                        # every answer this long, EOS ignored; left out: as the rows say
    [[require]]
    ours = "caraserve"
    over = "peft-mixed"
    at_least = 2.0                            # median ratio of output tokens a second

Knows no torch and starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from caraserve_cli.bench.recipe_file import base_beside, read_recipe
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.bench.system import SYSTEM_NAMES
from caraserve_cli.fleet.options import DeviceName, DtypeName

COMPARISON = "comparison"
DEVICES = ("auto", "cpu", "cuda")
# No `auto`: systems that are compared must compute in one and the same dtype.
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """Where the base, the adapters and the requests are.

    Attributes:
        base: what `--base` takes.
        limit: take only this many rows; None takes all.
        output_tokens: how long every answer is, whatever the rows say, with EOS ignored; None leaves the rows
            as they are.
    """

    base: str
    adapter_roots: tuple[Path, ...]
    requests: Path
    limit: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """`ours` must give at least `at_least` times the output tokens a second of `over`."""

    ours: str
    over: str
    at_least: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One benchmark.

    Attributes:
        systems: names of SYSTEM_NAMES, no two equal; answers are compared with those of the first.
        batch_size: requests that a system works on at once.
        warmups: whole runs of each system before the first measured one.
        repeats: measured runs of each system.
    """

    name: str
    description: str
    workload: WorkloadSpec
    systems: tuple[str, ...]
    batch_size: int
    device: DeviceName
    dtype: DtypeName
    warmups: int
    repeats: int
    requirements: tuple[Requirement, ...]


def load_recipe(path: Path) -> Recipe:
    """The comparison in a file.

    Raises:
        InputError: the file cannot be read.
        OptionError: it is no TOML, has an unknown key, or a wrong value.
    """
    return parse_recipe(read_recipe(path), path)


def parse_recipe(table: RecipeTable, path: Path) -> Recipe:
    """The comparison in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (COMPARISON,), COMPARISON)
    systems = _parse_systems(table)
    recipe = Recipe(
        name=path.stem,
        description=table.text("description"),
        workload=parse_workload(table.table("workload"), path),
        systems=systems,
        batch_size=table.count("batch_size", None),
        device=cast("DeviceName", table.choice("device", DEVICES, "cpu")),
        dtype=cast("DtypeName", table.choice("dtype", DTYPES, "float32")),
        warmups=table.count("warmups", 1, low=0),
        repeats=table.count("repeats", 5),
        requirements=tuple(_parse_requirement(each, systems) for each in table.tables("require")),
    )
    table.close()
    return recipe


def _parse_systems(table: RecipeTable) -> tuple[str, ...]:
    systems = table.texts("systems")
    known = f"a list of systems without repetition, from {', '.join(SYSTEM_NAMES)}"
    if not systems or len(set(systems)) < len(systems) or not set(systems) <= set(SYSTEM_NAMES):
        raise table.wrong("systems", known, list(systems))
    return systems


def parse_workload(table: RecipeTable, path: Path, *, limit: int | None = None) -> WorkloadSpec:
    """The table [workload] of a recipe in `path`; `limit` where the table says none.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    folder = path.parent
    spec = WorkloadSpec(
        base=base_beside(path, table.text("base")),
        adapter_roots=tuple(folder / root for root in table.texts("adapters")),
        requests=folder / table.text("requests"),
        limit=table.optional_count("limit") or limit,
        output_tokens=table.optional_count("output_tokens"),
    )
    table.close()
    return spec


def _parse_requirement(table: RecipeTable, systems: tuple[str, ...]) -> Requirement:
    requirement = Requirement(
        ours=table.text("ours"), over=table.text("over"), at_least=table.positive("at_least")
    )
    for key, name in (("ours", requirement.ours), ("over", requirement.over)):
        if name not in systems:
            raise table.wrong(key, f"one of the recipe's systems ({', '.join(systems)})", name)
    if requirement.ours == requirement.over:
        raise table.wrong("over", "another system than 'ours'", requirement.over)
    table.close()
    return requirement
