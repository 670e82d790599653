"""How well steps were predicted before they were computed: errors by kind of step. Knows no model."""

from __future__ import annotations

from dataclasses import dataclass, field

from caraserve_cli.events import StepRecord
from caraserve_cli.report.distribution import Distribution


@dataclass(slots=True)
class PredictionTotals:
    """Errors over the steps of one session.

    Attributes:
        source: where the predictions came from, in words; None where no step was told of.
        unpredicted: steps of which nothing could be said yet.
        errors: by kind of step, |predicted - measured| as a share of the measured time, which is without what
            the step stood still for adapters.
    """

    source: str | None = None
    unpredicted: int = 0
    errors: dict[str, Distribution] = field(default_factory=dict)

    def on_step(self, record: StepRecord) -> None:
        """See `EventSink`. Steps of no length, and those that were tried in vain before, are not compared."""
        self.source = record.prediction_source or self.source
        measured_ms = record.end_ms - record.start_ms - record.stall_ms
        if record.predicted_ms is None or record.num_memory_retries or measured_ms <= 0:
            self.unpredicted += 1
            return
        of_kind = self.errors.setdefault(record.kind, Distribution())
        of_kind.add(abs(record.predicted_ms / measured_ms - 1))

    @property
    def all_errors(self) -> Distribution:
        """Of all kinds."""
        total = Distribution()
        for of_kind in self.errors.values():
            total.merge(of_kind)
        return total
