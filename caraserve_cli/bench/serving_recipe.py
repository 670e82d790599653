"""What a serving benchmark measures, as its TOML file says it. Every key is honoured or refused by name. The
top is that of a throughput benchmark (`throughput_recipe`), without the lengths; a case has these keys and
those of the engine's options.

    kind = "serving"
    tensor_parallel = 4                 # optional: so many processes hold the base together
    [[case]]
    name = "9 requests a second"
    strategies = ["cached", "auto"]     # compared on one replica, repeat by repeat; with `auto-unkept` and so
                                        # on an adapter leaves the device with the last request that has it
    rate_per_s = 9                      # Poisson arrivals, submitted in their time (an open loop)
    load = 0.8                          # or: as a share of saturation, which needs `cached`
    requests = 100
    adapters = 100                      # optional; left out, each request has its own
    popularity = 1.0                    # optional: adapters are drawn by chance, see `popularity`; left out,
                                        # request i has adapter i % adapters
    lora_ranks = [64]                   # as in a throughput benchmark, as is `modules`
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    prompt_tokens = 128
    output_tokens = 128
    emulate_link_gbps = 3               # optional
    ttft_slo_ms = 100                   # optional, as `tpot_slo_ms` and `deadline_ms`: SLO attainment is told
    [[case.require]]                    # in milliseconds, of the median repeat
    strategy = "auto"
    mean_latency_at_most_ms = 800       # MEASURE_at_most_ms
    [[case.require]]                    # as a ratio to another strategy, of the median repeat
    strategy = "auto"
    over = "cached"
    mean_ttft_at_most = 1.03            # MEASURE_at_most, MEASURE_at_least

MEASURE is one of `MEASURES`; `p95_step_beside_load` is a ratio alone. Knows no torch and starts nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from caraserve_cli.bench.cold_starts import CACHED, CPU_ASSIST, parse_strategies, start_with
from caraserve_cli.bench.engine_case import EngineRecipe, parse_cases, parse_options, parse_top
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.bench.timed_case import TimedCase, parse_timed
from caraserve_cli.fleet.options import ReplicaOptions

SERVING = "serving"

# Of all requests of a run, in milliseconds; TPOT is null for answers of one token, which no mean counts.
MEASURES = (
    "mean_ttft",
    "p50_ttft",
    "p99_ttft",
    "mean_tpot",
    "p99_tpot",
    "mean_latency",
    "p99_latency",
    "longest_step",
)
# Of decode steps, against those of another strategy at the same moments: has no milliseconds of its own.
STEP_BESIDE_LOAD = "p95_step_beside_load"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRequirement:
    """What the median repeat must not pass: milliseconds, or with `over` a ratio to that strategy."""

    strategy: str
    measure: str
    over: str | None
    bound: float
    is_at_most: bool

    def is_met_by(self, value: float) -> bool:
        return value <= self.bound if self.is_at_most else value >= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingCase(TimedCase):
    """One case: requests that arrive in time.

    Attributes:
        strategies: compared, in this order.
        rate_per_s: mean of the Poisson arrivals; None where `load` is given.
        load: the same as a share of saturation; None where `rate_per_s` is given.
        link_gbps: of the emulated link; None for the machine's own.
    """

    strategies: tuple[str, ...]
    rate_per_s: float | None
    load: float | None
    link_gbps: float | None
    requirements: tuple[ServingRequirement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingRecipe(EngineRecipe[ServingCase]):
    """One benchmark of arrivals in time."""


def parse_serving(table: RecipeTable, path: Path) -> ServingRecipe:
    """The serving benchmark in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (SERVING,), SERVING)
    options = dataclasses.replace(
        parse_options(table, path, prefix_caching=False), tensor_parallel=table.count("tensor_parallel", 1)
    )
    recipe = ServingRecipe(
        **parse_top(table, path, options, repeats=5),
        cases=parse_cases(table, lambda each: _parse_case(each, options)),
    )
    table.close()
    return recipe


def _parse_case(table: RecipeTable, options: ReplicaOptions) -> ServingCase:
    for key in ("peft", "vllm", "cold"):
        table.refuse(key, "in a serving benchmark, whose strategies are compared with each other")
    timed = parse_timed(table, options)
    strategies = parse_strategies(table, unkept=True)
    if options.tensor_parallel > 1:
        table.refuse("cpu_workers", "beside 'tensor_parallel', where no process has a whole adapter")
        table.refuse(
            "emulate_link_gbps", "beside 'tensor_parallel', where each process has a link of its own"
        )
        if start_with(strategies) == CPU_ASSIST:
            must_be = f"without '{CPU_ASSIST}' beside 'tensor_parallel', where no process has a whole adapter"
            raise table.wrong("strategies", must_be, list(strategies))
    rate_per_s, load = table.optional_positive("rate_per_s"), table.optional_positive("load")
    if (rate_per_s is None) == (load is None):
        raise table.wrong("rate_per_s", "given or 'load' given, one of the two", rate_per_s)
    if load is not None and CACHED not in strategies:
        raise table.wrong("load", f"left out, or 'strategies' have '{CACHED}', which saturates", load)
    timed["options"] = dataclasses.replace(timed["options"], cold_start=start_with(strategies))
    case = ServingCase(
        **timed,
        strategies=strategies,
        rate_per_s=rate_per_s,
        load=load,
        link_gbps=table.optional_positive("emulate_link_gbps"),
        requirements=tuple(
            required for each in table.tables("require") for required in _parse_require(each, strategies)
        ),
    )
    table.close()
    return case


def _parse_require(table: RecipeTable, strategies: Sequence[str]) -> Iterator[ServingRequirement]:
    """Those of one table; every measure may have a bound in it."""
    strategy, over = table.text("strategy"), table.optional_text("over")
    for key, name in (("strategy", strategy), ("over", over)):
        if name is not None and name not in strategies:
            raise table.wrong(key, f"one of the case's strategies, {', '.join(strategies)}", name)
    if over == strategy:
        raise table.wrong("over", "another strategy", over)
    found = 0
    for measure in MEASURES if over is None else (*MEASURES, STEP_BESIDE_LOAD):
        ends = (("_at_most_ms", True),) if over is None else (("_at_most", True), ("_at_least", False))
        for end, is_at_most in ends:
            if (bound := table.optional_positive(measure + end)) is not None:
                found += 1
                yield ServingRequirement(
                    strategy=strategy, measure=measure, over=over, bound=bound, is_at_most=is_at_most
                )
    table.close()
    if not found:
        raise table.wrong(
            "mean_ttft_at_most" + ("_ms" if over is None else ""), "there, or another one", None
        )
