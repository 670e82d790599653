"""A simulated cluster from recipe to result: the SLO from a fleet without LoRA, then every policy at every
load. Knows no terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import count

from caraserve_cli import __version__
from caraserve_cli.bench.cluster_recipe import ClusterRecipe
from caraserve_cli.bench.cluster_result import ClusterFacts, ClusterPoint, ClusterResult
from caraserve_cli.bench.facts import code_commit
from caraserve_cli.core import Bounds
from caraserve_cli.placement.catalogue import placement
from caraserve_cli.placement.most_idle import MostIdlePlacement
from caraserve_cli.placement.policy import Placement
from caraserve_cli.simulation.fleet import SimulatedFleet
from caraserve_cli.simulation.tally import AnswerTally
from caraserve_cli.simulation.workload import Workload

# Told after each simulation.
OnPoint = Callable[[ClusterPoint], None]


def run_cluster(recipe: ClusterRecipe, on_point: OnPoint) -> ClusterResult:
    """Simulate all that a recipe asks for.

    Raises:
        OptionError: a request fits no replica.
    """
    slo_ms = recipe.slo.factor * _without_lora(recipe, None).time_per_token_ms
    # Again, to know how many of the same requests keep that bound where nothing is lost to LoRA.
    without_lora = _without_lora(recipe, slo_ms)
    on_point(without_lora)
    points: list[ClusterPoint] = []
    for lora_kernel in recipe.lora_kernels:
        left = list(recipe.policies)
        for rate_per_s in _rates(recipe):
            for name in list(left):
                point = _simulate(recipe, lora_kernel, placement(name, recipe.seed), rate_per_s, slo_ms)
                on_point(point)
                points.append(point)
                if point.attainment < recipe.give_up_below and rate_per_s >= recipe.slo.rate_per_s:
                    left.remove(name)
            if not left:
                break
    return ClusterResult(
        facts=ClusterFacts(
            recipe=recipe.name,
            description=recipe.description,
            caraserve_version=__version__,
            commit=code_commit(),
            machine=recipe.machine.name,
            is_measured=recipe.machine.is_measured,
            num_replicas=recipe.fleet.num_replicas,
            num_adapters=recipe.workload.adapters.num_adapters,
            cold_start=recipe.fleet.cold_start,
            num_requests=recipe.num_requests,
            num_settling=recipe.num_settling,
            seed=recipe.seed,
            slo_factor=recipe.slo.factor,
            slo_ms=slo_ms,
        ),
        policies=recipe.policies,
        without_lora=without_lora,
        points=tuple(points),
        requirements=recipe.requirements,
    )


def _rates(recipe: ClusterRecipe) -> Iterator[float]:
    yield from recipe.rates_per_s
    if recipe.further_factor is not None:
        for power in count(1):
            yield recipe.rates_per_s[-1] * recipe.further_factor**power


def _without_lora(recipe: ClusterRecipe, slo_ms: float | None) -> ClusterPoint:
    """The same requests for the base alone, at the SLO's load."""
    kernel, rate_per_s = recipe.lora_kernels[0], recipe.slo.rate_per_s
    return _simulate(recipe, kernel, MostIdlePlacement(), rate_per_s, slo_ms, with_lora=False)


def _simulate(
    recipe: ClusterRecipe,
    lora_kernel: str,
    chosen: Placement,
    rate_per_s: float,
    slo_ms: float | None,
    *,
    with_lora: bool = True,
) -> ClusterPoint:
    """One policy at one load. The same seed gives the same requests, at other times."""
    spec, machine = recipe.workload, recipe.machine
    workload = Workload(
        rate_per_s=rate_per_s,
        burstiness=spec.burstiness,
        prompts=spec.prompts,
        outputs=spec.outputs,
        adapters=spec.adapters,
        bounds=Bounds(tpot_slo_ms=slo_ms),
        num_requests=recipe.num_requests,
        seed=recipe.seed,
    )
    infos = spec.adapters.infos(machine.profile.shape, machine.profile.dtype_bytes) if with_lora else ()
    tally = AnswerTally(recipe.num_settling, recipe.num_requests - recipe.num_settling, slo_ms)
    keys = recipe.fleet
    fleet = SimulatedFleet(
        recipe.replicas(lora_kernel), chosen, keys.cold_start, tally.add, scheduling=keys.scheduling
    )
    started_s = time.process_time()
    fleet.run(workload.requests(infos))
    return ClusterPoint.of(
        tally,
        lora_kernel=lora_kernel if with_lora else "none",
        policy=chosen.name,
        rate_per_s=rate_per_s,
        num_steps=sum(replica.num_steps for replica in fleet.replicas),
        simulated_s=fleet.now_ms / 1000,
        cpu_s=time.process_time() - started_s,
    )
