"""What cases have in common whose requests arrive in time, each with bounds. Knows no torch and starts
nothing."""

from __future__ import annotations

from dataclasses import dataclass

from caraserve_cli.bench.engine_case import CommonKeys, EngineCase, parse_common
from caraserve_cli.bench.popularity import Popularity, parse_popularity
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.core import Bounds
from caraserve_cli.fleet.options import ReplicaOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedCase(EngineCase):
    """Requests that arrive one after the other; their adapters are cold, and each has one.

    Attributes:
        popularity: with which adapters are drawn; None where they take turns.
        bounds: that every request carries.
    """

    popularity: Popularity | None
    bounds: Bounds


class TimedKeys(CommonKeys):
    """What such a case says, whatever its kind."""

    prompt_tokens: int
    output_tokens: int
    cold: bool
    popularity: Popularity | None
    bounds: Bounds


def parse_timed(table: RecipeTable, options: ReplicaOptions) -> TimedKeys:
    """The keys of a case; `options` are the recipe's.

    Raises:
        OptionError: a wrong value.
    """
    common = parse_common(table, options, distinct=True)
    return TimedKeys(
        **common,
        prompt_tokens=table.count("prompt_tokens", None),
        output_tokens=table.count("output_tokens", None),
        cold=True,
        popularity=parse_popularity(table, common["num_adapters"]),
        bounds=Bounds(
            deadline_ms=table.optional_positive("deadline_ms"),
            ttft_slo_ms=table.optional_positive("ttft_slo_ms"),
            tpot_slo_ms=table.optional_positive("tpot_slo_ms"),
        ),
    )
