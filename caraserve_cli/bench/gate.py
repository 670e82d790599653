"""The regression gate: what a recording says of a baseline, metric by metric and as a whole.

`judged_metric` says what a metric's change is, and when it held or regressed. Ratios of one run decide.
Absolute figures are compared on the same hardware alone, and only while whatever the benchmark measured that
is not ours (yardsticks) is what it was; those that cannot be told then leave the decision to the ratios, if
there are any. Knows no files and no terminal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from caraserve_cli.bench.confidence import MIN_VALUES
from caraserve_cli.bench.fingerprint import find_differences
from caraserve_cli.bench.judged_metric import (
    NARROW,
    GateVerdict,
    JudgedMetric,
    change_of,
    judge_metric,
)
from caraserve_cli.bench.metric import Basis, Metric
from caraserve_cli.bench.recording import Recording


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """All metrics of both, and what else differs.

    Attributes:
        judged: in the recording's order, those with a direction; yardsticks are not among them.
        undone: work of the recording that was not done, so that nothing can be told.
    """

    baseline: Recording
    recording: Recording
    judged: tuple[JudgedMetric, ...]
    undone: tuple[str, ...]

    @property
    def verdict(self) -> GateVerdict:
        verdicts = {each.verdict for each in self.judged}
        if self.undone or not self.judged:
            return GateVerdict.CANNOT_TELL
        if GateVerdict.REGRESSED in verdicts:
            return GateVerdict.REGRESSED
        return (
            GateVerdict.CANNOT_TELL
            if any(each.verdict is GateVerdict.CANNOT_TELL for each in self.deciding)
            else GateVerdict.HELD
        )

    @property
    def deciding(self) -> Sequence[JudgedMetric]:
        """Ratios, where there are any; else all."""
        ratios = [each for each in self.judged if each.metric.basis is Basis.RATIO]
        return ratios or self.judged

    @property
    def is_settled(self) -> bool:
        """Whether further repeats would tell nothing more; tails stay wide whatever is done."""
        waiting = [each for each in self.deciding if not each.metric.is_tail] or self.deciding
        return all(each.is_narrow for each in waiting)

    def as_json(self) -> dict[str, object]:
        """The content of the file that `--json` writes."""
        return {
            "recipe": self.recording.recipe,
            "verdict": self.verdict,
            "undone": list(self.undone),
            "not_in_baseline": list(self.not_in_baseline),
            "hardware_differences": list(self.hardware_differences),
            "version_differences": list(self.version_differences),
            "metrics": [
                {
                    "name": each.metric.name,
                    "verdict": each.verdict,
                    "reason": each.reason,
                    "decides": each in self.deciding,
                    "unit": each.metric.unit,
                    "basis": each.metric.basis,
                    "direction": each.metric.direction,
                    "tolerance": each.metric.tolerance,
                    "worse": each.change and dataclasses.asdict(each.change),
                    "before": list(each.before.values),
                    "now": list(each.now.values) if each.now else None,
                }
                for each in self.judged
            ],
            "baseline": self.baseline.as_json(),
            "recording": self.recording.as_json(),
        }

    @property
    def not_in_baseline(self) -> tuple[str, ...]:
        """Metrics that would be judged if the baseline had them."""
        known = {metric.name for metric in self.baseline.metrics}
        return tuple(
            each.name for each in self.recording.metrics if each.is_judged and each.name not in known
        )

    @property
    def hardware_differences(self) -> tuple[str, ...]:
        return find_differences(self.baseline.fingerprint, self.recording.fingerprint)

    @property
    def version_differences(self) -> tuple[str, ...]:
        return find_differences(self.baseline.versions, self.recording.versions)


def judge(baseline: Recording, recording: Recording, undone: Sequence[str] = ()) -> GateResult:
    """Compare what was recorded now with what was recorded before."""
    now = {metric.name: metric for metric in recording.metrics}
    doubt = _doubt(baseline, recording)
    judged = []
    for before in baseline.metrics:
        of_now = now.get(before.name)
        if (of_now or before).is_judged:
            judged.append(judge_metric(before, of_now, None if of_now is None else doubt.about(of_now)))
    return GateResult(baseline=baseline, recording=recording, judged=tuple(judged), undone=tuple(undone))


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Why no metric, or no absolute figure, can be compared; None where they can."""

    of_all: str | None
    of_absolute: str | None
    yardsticks: tuple[tuple[Metric, Metric], ...]

    def about(self, metric: Metric) -> str | None:
        """Why this metric cannot be compared."""
        if self.of_all or metric.basis is Basis.RATIO:
            return self.of_all
        if self.of_absolute:
            return self.of_absolute
        for before, now in self.yardsticks:
            change = change_of(before, now)
            limit = math.log1p(metric.tolerance) / 2
            if change and abs(math.log(change.factor)) > limit:
                moved = change.factor - 1
                return f"the machine is not what it was: '{now.name}' is {abs(moved):.0%} " + (
                    "worse" if moved > 0 else "better"
                )
        return None


def _doubt(baseline: Recording, recording: Recording) -> _Doubt:
    of_all = of_absolute = None
    if baseline.recipe_digest != recording.recipe_digest:
        of_all = "the recipe measures something else than when the baseline was recorded; record it anew"
    if differences := find_differences(baseline.fingerprint, recording.fingerprint):
        of_absolute = f"other hardware: {differences[0]}"
    now = {metric.name: metric for metric in recording.metrics}
    yardsticks = tuple(
        (before, now[before.name])
        for before in baseline.metrics
        if before.basis is Basis.YARDSTICK and before.name in now
    )
    return _Doubt(of_all, of_absolute, yardsticks)


def recording_is_narrow(recording: Recording) -> bool:
    """Whether a baseline is worth no further repeats: compared with as many more of the same spread, the
    interval would be narrow."""
    ratios = [each for each in recording.metrics if each.is_judged and not each.is_tail]
    waiting = [each for each in ratios if each.basis is Basis.RATIO] or ratios
    for metric in waiting:
        if metric.has_zero and len(metric.values) >= MIN_VALUES:
            continue
        change = change_of(metric, metric)
        if change is None or math.log(change.high) > NARROW * math.log1p(metric.tolerance):
            return False
    return True
