"""One metric of a recording beside that of a baseline: by how much it became worse, and if that is too much.

A metric's change is the difference of the mean logarithms of its values, those of the recording less those of
the baseline, in the direction of worse; each value is of a process of its own, so that what differs from one
process to the next (addresses, hash seeds, the machine's state) is in the interval. The interval is Welch's,
of 95%. A metric

    held         if the whole interval is below its tolerance,
    regressed    if the whole interval is above its tolerance,
    cannot tell  if the tolerance is in the interval, or there is no interval to be had.

Zero has no logarithm: what fell to zero is as much better or worse as can be, and what rose from it cannot be
told unless higher is better.
Knows no recordings.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from enum import StrEnum

from caraserve_cli.bench.confidence import MIN_VALUES, student_t
from caraserve_cli.bench.metric import Direction, Metric
from caraserve_cli.errors import ExitStatus

# An interval this narrow is not worth further repeats, as a share of the tolerance: of a change of twice the
# tolerance it then leaves no doubt. Chosen, not measured.
NARROW = 0.4


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
        return half <= NARROW * math.log1p(self.metric.tolerance)


def judge_metric(before: Metric, now: Metric | None, doubt: str | None) -> JudgedMetric:
    """Compare a metric with what it was.

    Args:
        before: of the baseline.
        now: None where it is not measured any more.
        doubt: why the two cannot be compared; None where they can.
    """
    change = None if now is None else change_of(before, now)
    reason = "it is not measured any more" if now is None else doubt
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
