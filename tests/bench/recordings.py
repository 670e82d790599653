"""Recordings made up for the regression gate: as many values as wanted, with known noise."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from caraserve_cli.bench.metric_finder import describe_metric
from caraserve_cli.bench.recording import Recording

MACHINE = {"device": "a machine", "num_cores": "2"}


def noisy(median: float, *, seed: int, num_values: int = 6, noise: float = 0.01) -> tuple[float, ...]:
    """Values about `median`, log-normal."""
    chance = random.Random(seed)
    return tuple(median * chance.lognormvariate(0, noise) for _ in range(num_values))


def recorded(
    metrics: Mapping[str, Sequence[float]],
    *,
    machine: Mapping[str, str] = MACHINE,
    digest: str = "same",
    torch: str = "2.13",
) -> Recording:
    """A recording of these metrics, described by their names."""
    return Recording(
        recipe="tiny",
        recipe_digest=digest,
        recorded_at="2026-11-26T20:00:00+00:00",
        commit="0123456789abcdef",
        fingerprint=machine,
        versions={"torch": torch},
        metrics=tuple(describe_metric(name, tuple(values)) for name, values in metrics.items()),
    )
