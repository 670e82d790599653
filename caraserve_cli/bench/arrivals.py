"""One break-even grid from recipe to result. Knows no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import groupby, islice

from caraserve_cli.bench.arrival_recipe import ArrivalCase, ArrivalRecipe, Cell
from caraserve_cli.bench.arrival_result import ArrivalResult, CellResult, CellRuns, LinkResult, judge_cell
from caraserve_cli.bench.arrival_runner import ArrivalRun, ArrivalRunner
from caraserve_cli.bench.bench_replica import BenchReplica
from caraserve_cli.bench.cold_starts import check_replica, rotated
from caraserve_cli.bench.engine_runs import run_replicas
from caraserve_cli.bench.synthetic import random_prompts
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.surroundings import Surroundings

# Told after each cell: the case, and what was found.
OnCell = Callable[[str, CellResult], None]


def run_arrivals(recipe: ArrivalRecipe, on_cell: OnCell) -> ArrivalResult:
    """Measure every cell; cases with the same options on one replica.

    Raises:
        OptionError: the recipe asks for what this machine does not have.
        InputError: the base cannot be had, a request fails, or a step does not fit the device's memory.
    """
    for case in recipe.cases:
        check_replica(_where(recipe, case), LocalReplica, recipe.strategies, [case.link_gbps])

    def run(
        around: Surroundings, cases: Sequence[ArrivalCase], adapters: Sequence[str]
    ) -> tuple[float, dict[str, list[CellResult]]]:
        started_s = time.perf_counter()
        with closing(BenchReplica(around, cases[0].options, adapters)) as replica:
            ready_s = time.perf_counter() - started_s
            for case in cases:
                _check_fits(recipe, case, replica)
            return ready_s, {case.name: _run_case(recipe, case, replica, on_cell) for case in cases}

    done = run_replicas(recipe, run)
    return ArrivalResult(
        facts=done.facts,
        grid=recipe.cases[0].grid,
        links=tuple(
            LinkResult(name=case.name, link_gbps=case.link_gbps, cells=tuple(done.runs[case.name]))
            for case in recipe.cases
        ),
    )


def _where(recipe: ArrivalRecipe, case: ArrivalCase) -> str:
    return f"recipe '{recipe.name}', case '{case.name}'"


def _check_fits(recipe: ArrivalRecipe, case: ArrivalCase, replica: BenchReplica) -> None:
    """Refuse a pool in which the decoding requests' adapters could make room for an arrival's."""
    for lora_rank in case.lora_ranks:
        decoding, cold = case.adapters_of_rank(lora_rank)
        if not replica.fits({adapter.name for adapter in (*decoding, *cold)}):
            raise OptionError(
                f"{_where(recipe, case)}: 'cold_adapters': those of rank {lora_rank} and the decoding "
                "requests' do not fit the device together; give more 'adapter_memory', or fewer"
            )


def _run_case(
    recipe: ArrivalRecipe, case: ArrivalCase, replica: BenchReplica, on_cell: OnCell
) -> list[CellResult]:
    results: list[CellResult] = []
    for lora_rank, cells in groupby(case.cells, key=lambda cell: cell.lora_rank):
        runner = ArrivalRunner(_where(recipe, case), replica, case, lora_rank)
        for cell in cells:
            runs = _run_cell(recipe, cell, runner, replica.vocab_size)
            results.append(judge_cell(cell, runs, recipe.auto_within))
            on_cell(case.name, results[-1])
        runner.finish()
    return results


def _run_cell(recipe: ArrivalRecipe, cell: Cell, runner: ArrivalRunner, vocab_size: int) -> CellRuns:
    """All strategies once a turn, with the same prompt, after as many turns as there are warm-ups."""
    runs: dict[str, list[ArrivalRun]] = {strategy: [] for strategy in recipe.strategies}
    prompts = random_prompts(cell.name, cell.prompt_tokens, vocab_size)
    for turn, prompt in enumerate(islice(prompts, recipe.warmups + recipe.repeats)):
        for strategy in rotated(recipe.strategies, turn):
            run = runner.arrive(strategy, prompt)
            if turn >= recipe.warmups:
                runs[strategy].append(run)
    return runs
