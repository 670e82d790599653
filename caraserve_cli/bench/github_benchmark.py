"""Metrics in the JSON of github-action-benchmark's custom tools, which have one direction a file:
`customSmallerIsBetter` and `customBiggerIsBetter`
(https://github.com/benchmark-action/github-action-benchmark, README, "Custom benchmarks").
"""

from __future__ import annotations

from collections.abc import Mapping

from caraserve_cli.bench.gate_words import extremes_of
from caraserve_cli.bench.metric import Direction
from caraserve_cli.bench.recording import Recording

# What takes the place of `.json` in the name of each file.
SUFFIXES = {Direction.LOWER: ".smaller.json", Direction.HIGHER: ".bigger.json"}


def github_benchmark(recording: Recording) -> dict[str, list[Mapping[str, object]]]:
    """Suffix, which takes the place of `.json` → the file's content, of directions that have a metric."""
    files: dict[str, list[Mapping[str, object]]] = {}
    for metric in recording.metrics:
        if metric.direction is not None and metric.is_judged:
            files.setdefault(SUFFIXES[metric.direction], []).append(
                {
                    "name": f"{recording.recipe}: {metric.name}",
                    "unit": metric.unit,
                    "value": metric.median,
                    "range": extremes_of(metric),
                    "extra": f"{len(metric.values)} values, {metric.basis}",
                }
            )
    return files
