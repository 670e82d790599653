"""What a benchmark of scheduling under bounds measures, as its TOML file says it. Every key is honoured or
refused by name. The top is that of a throughput benchmark (`throughput_recipe`), without the lengths; a case
has these keys and those of the engine's options.

    kind = "slo"
    [[case]]
    name = "mixed ranks"
    scheduling = ["slack", "fcfs"]      # compared on one replica, rate by rate and repeat by repeat
    rates_per_s = [10, 20, 30]          # of the Poisson arrivals, ascending: an open loop at each
    requests = 200                      # at each rate
    adapters = 40                       # as in a serving benchmark, as are the next three
    popularity = 1.0
    lora_ranks = [8, 16, 32, 64, 128]
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    prompt_tokens = 128
    output_tokens = 128
    ttft_slo_ms = 500                   # bounds, at least one of them
    deadline_ms = 5000
    tpot_within = 1.5                   # the TPOT bound, as a multiple of the mean TPOT of the same requests
                                        # without adapters, first come first served, at the lowest rate
    attained = 0.99                     # optional: what "holds" means, a share of the requests
    ratio_at_least = 1.3                # optional: the highest rate that the first policy holds, over that of
                                        # the second

Knows no torch and starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from caraserve_cli.bench.engine_case import EngineRecipe, parse_cases, parse_options, parse_top
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.bench.timed_case import TimedCase, parse_timed
from caraserve_cli.core import Bounds
from caraserve_cli.engine.by_slack import SCHEDULING_NAMES
from caraserve_cli.fleet.options import ReplicaOptions

SLO = "slo"
_ATTAINED = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class SloCase(TimedCase):
    """One case: the same requests at several rates. `bounds` are without that of `tpot_within`.

    Attributes:
        scheduling: two policies, compared.
        rates_per_s: ascending.
        tpot_within: see the module's text; None where TPOT has no bound.
        attained: the share of requests that must meet their bounds at a rate that is held.
        ratio_at_least: required of the first policy's rate over the second's; None for no requirement.
    """

    scheduling: tuple[str, ...]
    rates_per_s: tuple[int, ...]
    tpot_within: float | None
    attained: float
    ratio_at_least: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SloRecipe(EngineRecipe[SloCase]):
    """One benchmark of scheduling under bounds."""


def parse_slo(table: RecipeTable, path: Path) -> SloRecipe:
    """The benchmark in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (SLO,), SLO)
    options = parse_options(table, path, prefix_caching=False)
    recipe = SloRecipe(
        **parse_top(table, path, options, repeats=3),
        cases=parse_cases(table, lambda each: _parse_case(each, options)),
    )
    table.close()
    return recipe


def _parse_case(table: RecipeTable, options: ReplicaOptions) -> SloCase:
    for key in ("peft", "vllm", "cold", "strategies", "rate_per_s", "load"):
        table.refuse(key, "in a benchmark of scheduling, whose policies are compared at 'rates_per_s'")
    table.refuse("tpot_slo_ms", "in a benchmark of scheduling, where 'tpot_within' says it")
    case = SloCase(
        **parse_timed(table, options),
        scheduling=table.texts("scheduling"),
        rates_per_s=table.distinct_counts("rates_per_s"),
        tpot_within=table.optional_positive("tpot_within"),
        attained=table.optional_positive("attained") or _ATTAINED,
        ratio_at_least=table.optional_positive("ratio_at_least"),
    )
    if sorted(case.scheduling) != sorted(SCHEDULING_NAMES):
        must_be = f"both of {' and '.join(SCHEDULING_NAMES)}, in the order of the comparison"
        raise table.wrong("scheduling", must_be, list(case.scheduling))
    if list(case.rates_per_s) != sorted(case.rates_per_s):
        raise table.wrong("rates_per_s", "ascending", list(case.rates_per_s))
    if case.attained > 1:
        raise table.wrong("attained", "a share of at most 1", case.attained)
    if case.bounds == Bounds() and case.tpot_within is None:
        raise table.wrong("ttft_slo_ms", "given, or 'deadline_ms' or 'tpot_within'", None)
    if case.tpot_within is not None and case.output_tokens < 2:
        raise table.wrong("output_tokens", "at least 2 where TPOT has a bound", case.output_tokens)
    table.close()
    return case
