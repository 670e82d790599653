"""What a break-even grid measures, as its TOML file says it. Every key is honoured or refused by name. The
top is that of a throughput benchmark (`throughput_recipe`), without lengths and repeats, and says what all
cells have in common; a case is the cells of one link, and has the engine's options too.

    kind = "arrivals"
    strategies = ["auto", "stream", "cpu-assist", "on-demand", "on-demand-blocking"]
    arrivals = 30                       # of each strategy in each cell, one at a time, strategies by turns
    warmups = 2                         # of the same, before
    decoding = 8                        # requests that decode beside it, each with a resident adapter
    decode_tokens = 512                 # answer of each of these; all begin anew when they end
    cold_adapters = 16                  # that arrivals take by turns, of each rank
    output_tokens = 4                   # of an arrival's answer
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    auto_within = 1.05                  # optional: `auto` takes at most that many times the mean TTFT of the
                                        # best of the others, or is not told from it with 95% confidence
    [[case]]
    name = "3 GB/s"
    emulate_link_gbps = 3               # optional
    prompt_tokens = [16, 128, 512]      # a cell for each of these and each rank
    lora_ranks = [8, 64, 128]

Knows no torch and starts nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from caraserve_cli.bench.cold_starts import AUTO, CACHED, parse_strategies, start_with
from caraserve_cli.bench.engine_case import (
    EngineCase,
    EngineRecipe,
    parse_cases,
    parse_engine,
    parse_options,
)
from caraserve_cli.bench.recipe_table import RecipeTable
from caraserve_cli.bench.synthetic import adapters_of
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter

ARRIVALS = "arrivals"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the grid: the length of the arrival's prompt, and the rank of all adapters."""

    prompt_tokens: int
    lora_rank: int

    @property
    def name(self) -> str:
        return f"{self.prompt_tokens} tokens, rank {self.lora_rank}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GridKeys:
    """What all cells of a recipe have in common.

    Attributes:
        num_decoding: requests that decode beside an arrival.
        num_cold: adapters of each rank that arrivals take by turns.
        arrival_tokens: of an arrival's answer.
    """

    num_decoding: int
    decode_tokens: int
    num_cold: int
    arrival_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalCase(EngineCase):
    """The cells of one link. As for every case, its adapters have the ranks by turns; `prompt_tokens` and
    `output_tokens` are the longest of any request.

    Attributes:
        cells: in the order of the file, prompts inside ranks.
        link_gbps: of the emulated link; None for the machine's own.
    """

    cells: tuple[Cell, ...]
    grid: GridKeys
    link_gbps: float | None

    def adapters_of_rank(
        self, lora_rank: int
    ) -> tuple[tuple[SyntheticAdapter, ...], tuple[SyntheticAdapter, ...]]:
        """Those of the decoding requests, and the cold ones."""
        of_rank = tuple(each for each in adapters_of(self) if each.lora_rank == lora_rank)
        return of_rank[: self.grid.num_decoding], of_rank[self.grid.num_decoding :]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalRecipe(EngineRecipe[ArrivalCase]):
    """One break-even grid; `warmups` and `repeats` are arrivals of each strategy in each cell.

    Attributes:
        strategies: compared in every cell, in this order.
        auto_within: what `auto` may take, as a multiple of the best; None where nothing is required.
    """

    strategies: tuple[str, ...]
    auto_within: float | None


def parse_arrivals(table: RecipeTable, path: Path) -> ArrivalRecipe:
    """The break-even grid in a file that was read.

    Raises:
        OptionError: it has an unknown key, or a wrong value.
    """
    table.choice("kind", (ARRIVALS,), ARRIVALS)
    options = parse_options(table, path, prefix_caching=False)
    strategies = parse_strategies(table)
    options = dataclasses.replace(options, cold_start=start_with(strategies))
    modules = table.lora_modules("modules")
    grid = GridKeys(
        num_decoding=table.count("decoding", 8),
        decode_tokens=table.count("decode_tokens", 512, low=2),
        num_cold=table.count("cold_adapters", 16),
        # The first token may be all that CPUs compute: only with a second one the adapter must come.
        arrival_tokens=table.count("output_tokens", 4, low=2),
    )
    if AUTO not in strategies or not set(strategies) - {AUTO, CACHED}:
        table.refuse("auto_within", f"without '{AUTO}' and one to compare it with in 'strategies'")
    recipe = ArrivalRecipe(
        name=path.stem,
        description=table.text("description"),
        options=options,
        warmups=table.count("warmups", 2, low=0),
        repeats=table.count("arrivals", 30),
        cases=parse_cases(table, lambda each: _parse_case(each, options, modules, grid)),
        strategies=strategies,
        auto_within=table.optional_positive("auto_within"),
    )
    table.close()
    return recipe


def _parse_case(
    table: RecipeTable, options: ReplicaOptions, modules: tuple[str, ...], grid: GridKeys
) -> ArrivalCase:
    prompt_tokens, lora_ranks = table.distinct_counts("prompt_tokens"), table.distinct_counts("lora_ranks")
    table.refuse("host_adapter_memory", "in a case, since all cases share the adapters in host memory")
    case_options = parse_engine(table, options)
    if case_options.max_running <= grid.num_decoding:
        must_be = f"above 'decoding' ({grid.num_decoding}), so that an arrival can run beside them"
        raise table.wrong("max_running", must_be, case_options.max_running)
    case = ArrivalCase(
        name=table.text("name"),
        num_requests=grid.num_decoding + 1,
        num_adapters=(grid.num_decoding + grid.num_cold) * len(lora_ranks),
        lora_ranks=lora_ranks,
        modules=modules,
        prompt_tokens=max(prompt_tokens),
        output_tokens=max(grid.decode_tokens, grid.arrival_tokens),
        cold=True,
        peft=False,
        options=case_options,
        cells=tuple(Cell(tokens, lora_rank) for lora_rank in lora_ranks for tokens in prompt_tokens),
        grid=grid,
        link_gbps=table.optional_positive("emulate_link_gbps"),
    )
    table.close()
    return case
