"""What a benchmark of a fleet's driver measures, as its TOML file says it. Every key is honoured or refused
by name.

    kind = "driver"
    description = "one line for `caraserve bench --list`"
    replicas = 2                # that answer at once: what is measured is all that is around them
    placement = "rank-aware"
    requests = 30_000           # of a run
    adapters = 200              # that requests have by turns
    prompt_tokens = 128
    max_running = 256           # of each replica
    repeats = 3
    alone_at_least = 5000       # optional: requests/s, median; replicas in the driver's process
    over_ray_at_least = 4000    # optional: the same, replicas in processes of their own

Knows no torch and starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.fleet.fleet_options import DEFAULT_PLACEMENT, PLACEMENT_NAMES

DRIVER = "driver"
ALONE, OVER_RAY = "alone", "over-ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverRecipe:
    """One benchmark of the driver.

    Attributes:
        at_least: requests a second that are required, by `ALONE` and `OVER_RAY`.
    """

    name: str
    description: str
    num_replicas: int
    placement: str
    num_requests: int
    num_adapters: int
    prompt_tokens: int
    max_running: int
    repeats: int
    at_least: dict[str, float | None]


def parse_driver(table: RecipeTable, path: Path) -> DriverRecipe:
    """The benchmark of a driver in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (DRIVER,), DRIVER)
    recipe = DriverRecipe(
        name=path.stem,
        description=table.text("description"),
        num_replicas=table.count("replicas", 2),
        placement=table.choice("placement", PLACEMENT_NAMES, DEFAULT_PLACEMENT),
        num_requests=table.count("requests", 30_000),
        num_adapters=table.count("adapters", 200),
        prompt_tokens=table.count("prompt_tokens", 128),
        max_running=table.count("max_running", 256),
        repeats=table.count("repeats", 3),
        at_least={
            ALONE: table.optional_positive("alone_at_least"),
            OVER_RAY: table.optional_positive("over_ray_at_least"),
        },
    )
    table.close()
    return recipe
