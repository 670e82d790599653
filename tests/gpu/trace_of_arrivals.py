"""A profile of cold arrivals, for https://ui.perfetto.dev: what the host does, and when the device and its
copy lane do what they were told.

    python -m tests.gpu.trace_of_arrivals RECIPE.toml TRACE.json.gz

RECIPE is of the kind `arrivals`, such as a copy of `recipes/break-even.toml` with one case and one cell.
After the warm-ups one turn of its strategies is profiled, each arrival beside those that decode; then it
ends.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function

from caraserve_cli.adapters.transfer import Transfer
from caraserve_cli.bench.arrival_recipe import parse_arrivals
from caraserve_cli.bench.arrival_runner import ArrivalRun, ArrivalRunner
from caraserve_cli.bench.arrivals import run_arrivals
from caraserve_cli.bench.recipe_file import read_recipe
from caraserve_cli.engine.adapter_moves import AdapterMoves
from caraserve_cli.engine.beside_steps import BesideSteps
from caraserve_cli.engine.chunk_steps import ChunkSteps
from caraserve_cli.engine.cold_starts import ColdStarts
from caraserve_cli.engine.decode_steps import DecodeSteps
from caraserve_cli.engine.engine import Engine
from caraserve_cli.engine.gpu_runner import GpuRunner
from caraserve_cli.engine.scheduler import Scheduler
from caraserve_cli.engine.steps_under_way import StepsUnderWay

# What gets a name in the trace.
MARKED = [
    (Engine, "add_request"),
    (Engine, "step"),
    (Scheduler, "plan"),
    (ColdStarts, "decide"),
    (AdapterMoves, "make"),
    (GpuRunner, "lay_out"),
    (ChunkSteps, "launch"),
    (ChunkSteps, "_send"),
    (ChunkSteps, "_replay"),
    (DecodeSteps, "launch"),
    (BesideSteps, "launch"),
    (Transfer, "begin"),
    (StepsUnderWay, "take"),
    (StepsUnderWay, "take_beside"),
]


class Profiled(Exception):  # noqa: N818 - an end, not an error
    """The trace is written."""


def tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def mark(owner: type, name: str) -> None:
    """Have each call of a method named in the trace."""
    called: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(called)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(f"{owner.__name__}.{name}"):
            return called(*args, **kwargs)

    setattr(owner, name, marked)


def profile_turn(num_before: int, num_arrivals: int, trace: Path) -> None:
    """Have so many arrivals profiled after so many others."""
    arrive, profiler = ArrivalRunner.arrive, profile(activities=list(ProfilerActivity.__members__.values()))
    num_begun = 0

    def profiled(runner: ArrivalRunner, strategy: str, prompt: tuple[int, ...]) -> ArrivalRun:
        nonlocal num_begun
        if num_begun == num_before:
            profiler.start()
        num_begun += 1
        with record_function(f"arrival, {strategy}"):
            run = arrive(runner, strategy, prompt)
        tell(f"{strategy}: {run.cold_start}, {run.ttft_ms:.2f} ms, others {run.others_tpot_ms:.2f} ms")
        if num_begun == num_before + num_arrivals:
            profiler.stop()
            profiler.export_chrome_trace(str(trace))
            raise Profiled
        return run

    ArrivalRunner.arrive = profiled  # type: ignore[method-assign]


def main(recipe_file: Path, trace: Path) -> None:
    recipe = parse_arrivals(read_recipe(recipe_file), recipe_file)
    num_strategies = len(recipe.strategies)
    for owner, name in MARKED:
        mark(owner, name)
    profile_turn(recipe.warmups * num_strategies, num_strategies, trace)
    try:
        run_arrivals(recipe, lambda case, cell: None)
    except Profiled:
        tell(f"{trace}: open it in https://ui.perfetto.dev")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
