"""What placement is told of a fleet's replicas: their sizes, and models of their times."""

from __future__ import annotations

from collections.abc import Sequence

from caraserve_cli.fleet.messages import ReplicaDescription
from caraserve_cli.perf.assumed import assumed_profile
from caraserve_cli.perf.step_model import StepModel
from caraserve_cli.placement.replica_facts import ReplicaFacts

# Requests that a replica is sent beyond those that it can run: it reads their adapters ahead of their turn
# (`scheduler.LOOKAHEAD_SEQUENCES`). All others wait in the driver, where they can still go anywhere.
AHEAD_REQUESTS = 64
# What a placement that moves requests may place, in multiples of what a replica is sent: the rest waits in
# the driver, where moving costs nothing. Chosen, not measured.
MOVABLE_FACTOR = 4


def has_measured_models(descriptions: Sequence[ReplicaDescription]) -> bool:
    """Whether all replicas are on machines with a profile: measured times and assumed ones do not compare."""
    return all(description.profile is not None for description in descriptions)


def most_sent(description: ReplicaDescription) -> int:
    """Requests that a replica has at once."""
    return description.config.max_running + AHEAD_REQUESTS


def fleet_facts(
    names: Sequence[str], descriptions: Sequence[ReplicaDescription], *, moves_requests: bool = False
) -> list[ReplicaFacts]:
    """One for each replica.

    Args:
        names: of the replicas.
        descriptions: of the same.
        moves_requests: whether the placement moves what was placed and not sent.
    """
    is_measured = has_measured_models(descriptions)
    factor = MOVABLE_FACTOR if moves_requests else 1
    facts = []
    for name, description in zip(names, descriptions, strict=True):
        profile = description.profile
        if profile is None or not is_measured:
            profile = assumed_profile(
                name, description.shape, description.dtype, is_on_gpu=description.is_on_gpu
            )
        model = StepModel.of(
            profile,
            is_padded=description.is_padded,
            max_batch_tokens=description.config.max_batch_tokens,
        )
        facts.append(
            ReplicaFacts(
                name=name,
                profile=profile,
                step_model=model,
                config=description.config,
                max_requests=factor * most_sent(description),
                num_cpu_workers=description.num_cpu_workers,
            )
        )
    return facts
