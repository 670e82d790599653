"""Two reports beside each other: configuration, then metrics, then adapters. Knows the schema of report.json.

Says by how much numbers differ and which way is better; whether a difference is more than chance one run
each cannot tell (repeated ones, or `caraserve bench`, can).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from caraserve_cli.report.settings_difference import differing_settings
from caraserve_cli.report.work_difference import Difference, WorkDifference, differing_work

Json = Mapping[str, Any]

# Smaller changes are called the same. Chosen, not measured: equal runs may differ by more.
SAME_WITHIN = 0.02
# What became of a figure whose work is not that of the other run, and of one that a run which was resumed
# tells of its last session only.
OTHER_WORK = "other work"
ONE_SESSION = "one session"

# path of a metric → what to call it, and whether more of it is better
_METRICS: Mapping[tuple[str, ...], tuple[str, bool]] = {
    ("slo", "attainment"): ("SLO attainment", True),
    ("throughput", "goodput_requests_per_s"): ("goodput, requests/s", True),
    ("throughput", "output_tokens_per_s"): ("output tokens/s", True),
    ("throughput", "requests_per_s"): ("requests/s", True),
    ("exact_match", "accuracy"): ("exact match", True),
    ("requests", "failed"): ("failed", False),
    ("cold_starts", "hit_rate"): ("adapter hit rate", True),
    ("engine", "preemptions"): ("preemptions", False),
    **{
        ("times", time, key): (f"{label} {key}, ms", False)
        for time, label in (
            ("ttft_ms", "TTFT"),
            ("tpot_ms", "TPOT"),
            ("latency_ms", "latency"),
            ("queue_ms", "queue"),
        )
        for key in ("p50", "p99")
    },
}
# What of a report is of the last session only.
_OF_SESSION = ("throughput", "cold_starts", "engine")
# Keys of figures that are shares, from 0 to 1.
_SHARES = ("attainment", "accuracy", "hit_rate")
# What hangs on the bounds that requests carry.
_OF_BOUNDS = (
    ("slo", "attainment"),
    ("throughput", "goodput_requests_per_s"),
    ("slo_of_answered", "attainment"),
)


@dataclass(frozen=True, slots=True)
class Change:
    """One number of both runs; None where a run does not define it. Of other work, or of one session of a run
    that had several, neither is the better. `is_share`: it is a share, from 0 to 1.
    """

    name: str
    before: float | None
    after: float | None
    more_is_better: bool
    is_same_work: bool = True
    is_of_whole_runs: bool = True
    is_share: bool = False

    @property
    def ratio(self) -> float | None:
        return self.after / self.before if self.before and self.after is not None else None

    @property
    def verdict(self) -> str:
        """`better`, `worse`, `same`, `other work`, `one session`, or `-` where one of them is not defined."""
        if self.before is None or self.after is None:
            return "-"
        if not self.is_same_work:
            return OTHER_WORK
        if not self.is_of_whole_runs:
            return ONE_SESSION
        if abs(self.after - self.before) <= SAME_WITHIN * abs(self.before):
            return "same"
        return "better" if (self.after > self.before) == self.more_is_better else "worse"


@dataclass(frozen=True, slots=True)
class LastSession:
    """Of a run that was resumed: how many requests its last session answered, of all that were."""

    answered: int
    of: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """`work`, `settings`: in what they differ; `resumed`: of the first run and the second, None for one that
    was not; `adapters`: by name, for those of either run.
    """

    work: list[Difference]
    resumed: tuple[LastSession | None, LastSession | None]
    settings: list[Difference]
    metrics: list[Change]
    adapters: list[tuple[str, list[Change]]]


def compare_reports(before: Json, after: Json) -> Comparison:
    """What differs between two reports as read from report.json."""
    other = differing_work(before, after)
    resumed = (_last_session(before), _last_session(after))
    are_whole = resumed == (None, None)
    metrics = [
        _change(name, path, before, after, better, other, are_whole or path[0] not in _OF_SESSION)
        for path, (name, better) in _METRICS.items()
    ]
    work = [*other.work, *other.bounds]
    return Comparison(
        work, resumed, differing_settings(before, after), metrics, _adapters(before, after, other)
    )


def _last_session(report: Json) -> LastSession | None:
    if not report["run"]["resumed"]:
        return None
    return LastSession(report["throughput"]["answered"], report["requests"]["answered"])


def _change(
    name: str,
    path: tuple[str, ...],
    before: Json | None,
    after: Json | None,
    better: bool,
    other: WorkDifference,
    is_of_whole_runs: bool = True,
) -> Change:
    return Change(
        name,
        _at(before, path),
        _at(after, path),
        better,
        is_same_work=not other.work and not (other.bounds and path in _OF_BOUNDS),
        is_of_whole_runs=is_of_whole_runs,
        is_share=path[-1] in _SHARES,
    )


def _adapters(before: Json, after: Json, other: WorkDifference) -> list[tuple[str, list[Change]]]:
    """Those answered most in the second run first."""
    entries = [{entry["adapter"]: entry for entry in report["by_adapter"]} for report in (before, after)]
    names = sorted(
        entries[0].keys() | entries[1].keys(),
        key=lambda name: (-entries[1].get(name, {"answered": 0})["answered"], name or ""),
    )
    paths = (
        (("slo_of_answered", "attainment"), "SLO attainment", True),
        (("times", "ttft_ms", "p50"), "TTFT p50", False),
        (("times", "tpot_ms", "p50"), "TPOT p50", False),
        (("times", "latency_ms", "p50"), "latency p50", False),
        (("times", "latency_ms", "p99"), "latency p99", False),
    )
    return [
        (
            "(base)" if name is None else name,
            [
                _change(label, path, entries[0].get(name), entries[1].get(name), better, other)
                for path, label, better in paths
            ],
        )
        for name in names
    ]


def _at(report: Any, path: tuple[str, ...]) -> float | None:
    for key in path:
        if not isinstance(report, Mapping):
            return None
        report = report.get(key)
    return report if isinstance(report, (int, float)) else None
