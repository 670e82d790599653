"""The runs of a benchmark: warm-ups first, then repeats in which every system has its turn.

Interleaving spreads the machine's drift over all systems alike; each repeat begins with another system, so
that none always follows the same one. Judges nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence

from caraserve_cli.bench.system import System, SystemRun
from caraserve_cli.bench.workload import Workload

# Told after each run: the system's name, the repeat (from 1; 0 for a warm-up), and the run.
OnRun = Callable[[str, int, SystemRun], None]


def measure(
    systems: Sequence[System], workload: Workload, warmups: int, repeats: int, on_run: OnRun
) -> Mapping[str, tuple[SystemRun, ...]]:
    """System name -> its measured runs; runs with the same index were made in the same repeat.

    Raises:
        InputError: a system cannot answer.
    """
    for _ in range(warmups):
        for system in systems:
            on_run(system.name, 0, system.answer(workload))
    runs: dict[str, list[SystemRun]] = {system.name: [] for system in systems}
    for repeat in range(repeats):
        first = repeat % len(systems)
        for system in (*systems[first:], *systems[:first]):
            gc.collect()  # nobody pays for another one's garbage
            run = system.answer(workload)
            runs[system.name].append(run)
            on_run(system.name, repeat + 1, run)
    return {name: tuple(of_system) for name, of_system in runs.items()}
