"""How well steps were predicted before they were computed: errors by kind of step, and what was not, by
the reason. Knows no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from caraserve_cli.events import StepRecord
from caraserve_cli.report.distribution import Distribution

# Of a step whose time is nothing but what it stood still.
NO_TIME = "no-time"


@dataclass(slots=True)
class PredictionTotals:
    """Errors over the steps of one session; an `EventSink`.

    Attributes:
        source: where the predictions came from, in words; None where no step was told of.
        unpredicted: steps of which nothing was said, or that nothing can be compared with, by the reason.
        errors: by kind of step, |predicted - measured| as a share of the measured time, which is without what
            the step stood still for adapters.
        errors_of_stalled: of those of them that stood still.
    """

    source: str | None = None
    unpredicted: Counter[str] = field(default_factory=Counter)
    errors: dict[str, Distribution] = field(default_factory=dict)
    errors_of_stalled: Distribution = field(default_factory=Distribution)

    def on_step(self, record: StepRecord) -> None:
        """See `EventSink`."""
        self.source = record.prediction_source or self.source
        measured_ms = record.end_ms - record.start_ms - record.stall_ms
        if record.predicted_ms is None or measured_ms <= 0:
            self.unpredicted[record.why_unpredicted or NO_TIME] += 1
            return
        error = abs(record.predicted_ms / measured_ms - 1)
        self.errors.setdefault(record.kind, Distribution()).add(error)
        if record.stall_ms > 0:
            self.errors_of_stalled.add(error)

    @property
    def all_errors(self) -> Distribution:
        """Of all kinds."""
        total = Distribution()
        for of_kind in self.errors.values():
            total.merge(of_kind)
        return total

    def as_json(self) -> Mapping[str, object]:
        """For the report. Errors are shares of the measured time."""
        return {
            "scope": "this session",
            "source": self.source,
            **_errors(self.all_errors),
            "by_kind": {kind: _errors(errors) for kind, errors in sorted(self.errors.items())},
            "stalled": _errors(self.errors_of_stalled),
            "unpredicted": dict(sorted(self.unpredicted.items())),
        }


def _errors(errors: Distribution) -> dict[str, object]:
    median_error, p95_error = errors.quantile(0.5), errors.quantile(0.95)
    return {
        "steps": errors.count,
        "median_error": None if median_error is None else round(median_error, 4),
        "p95_error": None if p95_error is None else round(p95_error, 4),
    }
