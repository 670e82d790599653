"""CaraServe as a system to measure: one replica in this process."""

from __future__ import annotations

import time
from contextlib import closing

from caraserve_cli.bench.recipe import Recipe
from caraserve_cli.bench.system import CARASERVE, SystemRun
from caraserve_cli.bench.workload import Workload, replica_options
from caraserve_cli.core import Failure
from caraserve_cli.errors import InputError
from caraserve_cli.fleet.local import LocalReplica, NoEvents
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.job.clock import RunClock


class CaraServeSystem:
    """Starts a new replica for every run, before the clock: nothing of an earlier run is in its prefix cache
    or its adapter pool. Adapters stay in host memory; their way to the device is measured, and so is the
    text of the answers, which the engine makes as it goes.
    """

    name = CARASERVE

    def __init__(self, recipe: Recipe) -> None:
        self._options = replica_options(recipe)
        self._surroundings = Surroundings.prepare(self._options)

    def answer(self, workload: Workload) -> SystemRun:
        """Answer every request, as many at once as the recipe's batch size.

        Raises:
            InputError: a request fails.
        """
        clock = RunClock()
        answers: dict[str, tuple[int, ...]] = {}
        with closing(LocalReplica(self._surroundings, self._options, clock, NoEvents())) as replica:
            clock.start()
            started_s = time.perf_counter()
            replica.submit(workload.requests)
            while replica.num_unfinished:
                for outcome in replica.poll():
                    if isinstance(outcome, Failure):
                        where = f"{self.name} cannot answer '{outcome.request.id}'"
                        raise InputError(f"{where}: {outcome.message}")
                    answers[outcome.request.id] = tuple(outcome.token_ids)
            seconds = time.perf_counter() - started_s
        return SystemRun(answers=answers, seconds=seconds)
