"""The regression gate: what a recording says of a baseline, metric by metric and as a whole.

A metric's change is the difference of the mean logarithms of its values, those of the recording less those of
the baseline, in the direction of worse; each value is of a process of its own, so that what differs from one
process to the next (addresses, hash seeds, the machine's state) is in the interval. The interval is Welch's,
of 95%. A metric

    held         if the whole interval is below its tolerance,
    regressed    if the whole interval is above its tolerance,
    cannot tell  if the tolerance is in the interval, or there is no interval to be had.

Zero has no logarithm: what fell to zero is as much better or worse as can be, and what rose from it cannot be
told unless higher is better.

Ratios of one run decide. Absolute figures are compared on the same hardware alone, and only while whatever
the benchmark measured that is not ours (yardsticks) is what it was; those that cannot be told then leave the
decision to the ratios, if there are any. Knows no files and no terminal.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from caraserve_cli.bench.confidence import MIN_VALUES, student_t
from caraserve_cli.bench.fingerprint import find_differences
from caraserve_cli.bench.metric import Basis, Direction, Metric
from caraserve_cli.bench.recording import Recording
from caraserve_cli.errors import ExitStatus

# An interval this narrow is not worth further repeats, as a share of the tolerance: of a change of twice the
# tolerance it then leaves no doubt. Chosen, not measured.
_NARROW = 0.4


class GateVerdict(StrEnum):
    """What became of a metric, or of all."""

    HELD = "held"
    REGRESSED = "regressed"
    CANNOT_TELL = "cannot tell"

    @property
    def exit_status(self) -> int:
        return {
            GateVerdict.HELD: ExitStatus.OK,
            GateVerdict.REGRESSED: ExitStatus.REGRESSED,
            GateVerdict.CANNOT_TELL: ExitStatus.CANNOT_TELL,
        }[self]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """By what factor a metric became worse, below 1 for better, and where that lies with 95% confidence."""

    factor: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedMetric:
    """One metric.

    Attributes:
        now: None where it is not measured any more.
        change: None where too few values give no interval.
        reason: why nothing can be told; None otherwise.
    """

    before: Metric
    now: Metric | None
    change: Change | None
    verdict: GateVerdict
    reason: str | None

    @property
    def metric(self) -> Metric:
        """Whose name, direction and tolerance count: today's recipe decides."""
        return self.now or self.before

    @property
    def has_enough(self) -> bool:
        """Whether an interval is to be had of that many values."""
        return self.now is not None and min(len(self.before.values), len(self.now.values)) >= MIN_VALUES

    @property
    def is_narrow(self) -> bool:
        """Whether further repeats would tell nothing more."""
        if self.change is None:  # with enough values: some of them are zero
            return self.has_enough
        half = math.log(self.change.high / self.change.low) / 2
        return half <= _NARROW * math.log1p(self.metric.tolerance)


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
    judged = [
        _judge_metric(before, now.get(before.name), doubt)
        for before in baseline.metrics
        if now.get(before.name, before).is_judged
    ]
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


def _judge_metric(before: Metric, now: Metric | None, doubt: _Doubt) -> JudgedMetric:
    change = None if now is None else change_of(before, now)
    reason = "it is not measured any more" if now is None else doubt.about(now)
    if reason is None and now is not None and change is None:
        fewer = min(len(before.values), len(now.values))
        if fewer >= MIN_VALUES:
            return _judge_zeros(before, now)
        reason = f"{fewer} runs give no interval; {MIN_VALUES} do"
    if reason is None and change is not None and now is not None:
        limit = 1 + now.tolerance
        if change.high < limit:
            return _judged(before, now, change, GateVerdict.HELD, None)
        if change.low > limit:
            return _judged(before, now, change, GateVerdict.REGRESSED, None)
        reason = "the tolerance lies within the interval"
    return _judged(before, now, change, GateVerdict.CANNOT_TELL, reason)


def _judge_zeros(before: Metric, now: Metric) -> JudgedMetric:
    """A metric that was or is zero."""
    was_zero, is_zero = max(before.values) == 0, max(now.values) == 0
    is_higher = now.direction is Direction.HIGHER
    if is_zero and (was_zero or not is_higher):
        return _judged(before, now, None, GateVerdict.HELD, None)
    if is_zero and not before.has_zero:
        return _judged(before, now, None, GateVerdict.REGRESSED, None)
    if was_zero and is_higher:
        return _judged(before, now, None, GateVerdict.HELD, None)
    reason = "it was zero, and no fraction of that tells" if was_zero else "some of its values are zero"
    return _judged(before, now, None, GateVerdict.CANNOT_TELL, reason)


def _judged(
    before: Metric, now: Metric | None, change: Change | None, verdict: GateVerdict, reason: str | None
) -> JudgedMetric:
    return JudgedMetric(before=before, now=now, change=change, verdict=verdict, reason=reason)


def change_of(before: Metric, now: Metric) -> Change | None:
    """Welch's interval of the change for the worse; None for too few values of either, and where one is
    zero."""
    if min(len(before.values), len(now.values)) < MIN_VALUES or before.has_zero or now.has_zero:
        return None
    sign = -1.0 if now.direction is Direction.HIGHER else 1.0
    a, b = ([sign * math.log(value) for value in each.values] for each in (before, now))
    parts = [statistics.variance(each) / len(each) for each in (a, b)]
    shift, variance = statistics.fmean(b) - statistics.fmean(a), sum(parts)
    half = 0.0
    if variance > 0:
        degrees = variance**2 / sum(
            part**2 / (len(each) - 1) for part, each in zip(parts, (a, b), strict=True)
        )
        half = student_t(max(degrees, MIN_VALUES - 1)) * math.sqrt(variance)
    return Change(factor=math.exp(shift), low=math.exp(shift - half), high=math.exp(shift + half))


def recording_is_narrow(recording: Recording) -> bool:
    """Whether a baseline is worth no further repeats: compared with as many more of the same spread, the
    interval would be narrow."""
    ratios = [each for each in recording.metrics if each.is_judged and not each.is_tail]
    waiting = [each for each in ratios if each.basis is Basis.RATIO] or ratios
    for metric in waiting:
        if metric.has_zero and len(metric.values) >= MIN_VALUES:
            continue
        change = change_of(metric, metric)
        if change is None or math.log(change.high) > _NARROW * math.log1p(metric.tolerance):
            return False
    return True
