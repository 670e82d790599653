"""One benchmark of a fleet's driver from recipe to result: its own code, over replicas that answer at once.

A window of requests is kept full, as a run does it; reading, tokenising and writing are not part of it. Knows
no terminal.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from itertools import islice

from caraserve_cli import __version__
from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.bench.driver_recipe import ALONE, OVER_RAY, DriverRecipe
from caraserve_cli.bench.driver_result import DriverCase, DriverResult, DriverRun, judge_driver
from caraserve_cli.bench.echo import EchoCrew, echo_description, numbered_adapter
from caraserve_cli.bench.echo_hosted import EchoHosted
from caraserve_cli.bench.facts import code_commit, installed_versions
from caraserve_cli.bench.result_facts import MeasuredFacts
from caraserve_cli.core import Bounds, Completion, Request, SamplingParams
from caraserve_cli.errors import OptionError
from caraserve_cli.fleet.crew import Crew
from caraserve_cli.fleet.fleet import Fleet
from caraserve_cli.fleet.fleet_options import FleetOptions
from caraserve_cli.fleet.local import NoEvents
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.ray_cluster import RayCluster, require_ray
from caraserve_cli.job.run import LOOKAHEAD_REQUESTS, MOST_POLL_WAIT_S
from caraserve_cli.placement.catalogue import placement

# Told after each run: where the replicas are, the repeat (from 1), and requests a second.
OnDriverRun = Callable[[str, int, float], None]

_VOCAB_SIZE = 32_000


def run_driver(recipe: DriverRecipe, on_run: OnDriverRun) -> DriverResult:
    """Measure the driver alone, and then, if Ray is installed, over Ray actors on this machine.

    Raises:
        InputError: Ray starts no cluster.
    """
    load_average = os.getloadavg()[0]
    requests = _make_requests(recipe)
    cases = (_measure_alone(recipe, requests, on_run), _measure_over_ray(recipe, requests, on_run))
    return DriverResult(recipe=recipe, facts=_facts(recipe, load_average), cases=cases)


def _make_requests(recipe: DriverRecipe) -> list[Request]:
    chance = random.Random(0)
    return [
        Request(
            id=f"r{number}",
            line=number,
            prompt_token_ids=tuple(chance.choices(range(_VOCAB_SIZE), k=recipe.prompt_tokens)),
            adapter=str(number % recipe.num_adapters),
            sampling=SamplingParams(max_tokens=10),
            bounds=Bounds(tpot_slo_ms=50.0),
        )
        for number in range(recipe.num_requests)
    ]


def _measure_alone(recipe: DriverRecipe, requests: Sequence[Request], on_run: OnDriverRun) -> DriverCase:
    descriptions = [echo_description(max_running=recipe.max_running)] * recipe.num_replicas
    return _measure(ALONE, EchoCrew(descriptions), recipe, requests, on_run)


def _measure_over_ray(recipe: DriverRecipe, requests: Sequence[Request], on_run: OnDriverRun) -> DriverCase:
    try:
        require_ray(FleetOptions(replicas=recipe.num_replicas))
    except OptionError as error:
        return DriverCase(
            name=OVER_RAY, requests_per_s=None, problem=str(error), at_least=recipe.at_least[OVER_RAY]
        )
    with RayCluster(None, recipe.num_replicas) as cluster:
        from caraserve_cli.fleet.ray_crew import RayCrew

        crew = RayCrew(
            cluster,
            ReplicaOptions(base="", max_running=recipe.max_running),
            recipe.num_replicas,
            is_on_gpu=False,
            library=AdapterLibrary({}),
            clock_ms=_clock_ms,
            hosted=EchoHosted,
        )
        try:
            return _measure(OVER_RAY, crew, recipe, requests, on_run)
        finally:
            crew.close()


def _measure(
    name: str, crew: Crew, recipe: DriverRecipe, requests: Sequence[Request], on_run: OnDriverRun
) -> DriverCase:
    runs: list[DriverRun] = []
    for repeat in range(1, recipe.repeats + 1):
        runs.append(_run_once(crew, recipe, requests))
        on_run(name, repeat, recipe.num_requests / runs[-1].seconds)
    return judge_driver(name, runs, recipe.num_requests, recipe.at_least[name])


def _run_once(crew: Crew, recipe: DriverRecipe, requests: Sequence[Request]) -> DriverRun:
    """All requests through a fleet, which is driven as `job.run` drives it."""
    deaths: list[str] = []
    fleet = Fleet(crew, placement(recipe.placement), numbered_adapter, _clock_ms, NoEvents(), deaths.append)
    window = len(crew.names) * recipe.max_running + LOOKAHEAD_REQUESTS
    coming = iter(requests)
    num_ended, answered = 0, set[str]()
    started_s = time.perf_counter()
    while num_ended < len(requests):
        fleet.submit(list(islice(coming, window - fleet.num_unfinished)))
        outcomes = fleet.poll(MOST_POLL_WAIT_S)
        num_ended += len(outcomes)
        answered.update(outcome.request.id for outcome in outcomes if isinstance(outcome, Completion))
    return DriverRun(time.perf_counter() - started_s, len(answered), tuple(deaths))


def _clock_ms() -> float:
    return time.perf_counter() * 1000.0


def _facts(recipe: DriverRecipe, load_average: float) -> MeasuredFacts:
    return MeasuredFacts(
        recipe=recipe.name,
        description=recipe.description,
        caraserve_version=__version__,
        commit=code_commit(),
        versions=installed_versions(("numpy", "ray")),
        num_cores=len(os.sched_getaffinity(0)),
        load_average=round(load_average, 2),
    )
