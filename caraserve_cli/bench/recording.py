"""What `--record FILE` writes and `--baseline FILE` reads: the metrics of several runs of one recipe, each in
a process of its own, and where they were made. Judges nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from caraserve_cli.bench.fingerprint import machine_fingerprint, result_versions
from caraserve_cli.bench.gate_rules import GateRule, apply_gate_rules
from caraserve_cli.bench.metric import Basis, Direction, Metric
from caraserve_cli.bench.metric_finder import find_metrics
from caraserve_cli.bench.paper import PAPER
from caraserve_cli.errors import InputError

_FORMAT = "caraserve-bench-recording/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One recipe, measured in several processes.

    Attributes:
        recipe_digest: of what the recipe measures; another one makes other figures.
        commit: of the code, None where nothing says it.
        fingerprint, versions: see `fingerprint`.
        metrics: of equal length, one value a process.
    """

    recipe: str
    recipe_digest: str
    recorded_at: str
    commit: str | None
    fingerprint: Mapping[str, str]
    versions: Mapping[str, str]
    metrics: tuple[Metric, ...]

    @property
    def num_rounds(self) -> int:
        return max((len(metric.values) for metric in self.metrics), default=0)

    def as_json(self) -> dict[str, object]:
        """The content of the file."""
        return {"format": _FORMAT, "num_rounds": self.num_rounds, **dataclasses.asdict(self)}


def make_recording(
    recipe: str,
    recipe_digest: str,
    rules: Sequence[GateRule],
    results: Sequence[Mapping[str, object]],
    *,
    each_repeat: bool = False,
) -> Recording:
    """The metrics that every one of the results has.

    Args:
        results: what `--json` writes, of at least one process.
        each_repeat: see `find_metrics`.

    Raises:
        OptionError: a rule fits no metric.
    """
    found = [
        {metric.name: metric for metric in find_metrics(result, each_repeat=each_repeat)}
        for result in results
    ]
    metrics = [
        metric.having([value for of_run in found for value in of_run[name].values])
        for name, metric in found[0].items()
        if all(name in of_run for of_run in found)
    ]
    commit = results[0].get("commit")
    return Recording(
        recipe=recipe,
        recipe_digest=recipe_digest,
        recorded_at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=commit if isinstance(commit, str) else None,
        fingerprint=machine_fingerprint(results[0]),
        versions=result_versions(results[0]),
        metrics=tuple(apply_gate_rules(metrics, rules, recipe)),
    )


def recipe_digest(values: Mapping[str, object]) -> str:
    """Of what a recipe measures: neither what is said of it nor what is required changes a figure."""
    said = ("description", "gate", "require", PAPER)
    measured = {key: value for key, value in values.items() if key not in said}
    return blake2b(json.dumps(measured, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()


def read_recording(path: Path) -> Recording:
    """A file that `--record` wrote.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        content: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"--baseline: '{path}' cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"--baseline: '{path}' is no JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise InputError(
            f"--baseline: '{path}' is no recording; make one with caraserve bench RECIPE --record FILE"
        )
    try:
        keys = {field.name for field in dataclasses.fields(Recording)} - {"metrics"}
        metrics = tuple(_read_metric(each) for each in content["metrics"])
        for key in ("fingerprint", "versions"):
            if not isinstance(content[key], dict):
                raise TypeError(f"'{key}' is no object")
        return Recording(metrics=metrics, **{key: content[key] for key in keys})
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"--baseline: '{path}' is a broken recording ({error!r}); record it anew") from error


def _read_metric(values: Mapping[str, Any]) -> Metric:
    direction = values["direction"]
    metric = Metric(
        name=str(values["name"]),
        unit=str(values["unit"]),
        basis=Basis(values["basis"]),
        direction=None if direction is None else Direction(direction),
        tolerance=float(values["tolerance"]),
        is_tail=bool(values["is_tail"]),
        values=tuple(float(value) for value in values["values"]),
    )
    if not metric.values or not all(math.isfinite(value) and value >= 0 for value in metric.values):
        raise ValueError(f"'{metric.name}' has a value that is below zero or no number, or none")
    return metric
