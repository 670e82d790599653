"""What a fleet's replicas did, counted by the driver, for the report. Knows no report."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from caraserve_cli.core import Completion
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.busy_time import BusyTime
from caraserve_cli.fleet.messages import Outcome

# Reasons that are kept of each replica. Chosen, not measured.
_KEPT_REASONS = 8


@dataclass(slots=True, kw_only=True)
class ReplicaAccount:
    """Counts of one replica, of all that were there in its place.

    Attributes:
        busy: the time in which at least one step was under way; those beside others count once with them.
        deaths: how often it died, its starts in another's place included.
        death_reasons: of the last ones, for people; as many as are kept.
    """

    name: str
    device: str
    answered: int = 0
    failed: int = 0
    output_tokens: int = 0
    steps: int = 0
    busy: BusyTime = field(default_factory=BusyTime)
    running_sum: int = 0
    deaths: int = 0
    death_reasons: deque[str] = field(default_factory=lambda: deque(maxlen=_KEPT_REASONS))

    def add_step(self, record: StepRecord) -> None:
        """One more step."""
        self.steps += 1
        self.busy.add(record.start_ms, record.end_ms)
        self.running_sum += record.num_running

    def add_outcome(self, outcome: Outcome) -> None:
        """One request less."""
        if isinstance(outcome, Completion):
            self.answered += 1
            self.output_tokens += len(outcome.token_ids)
        else:
            self.failed += 1

    def add_death(self, reason: str) -> None:
        """It died once more."""
        self.deaths += 1
        self.death_reasons.append(reason)

    def as_json(self) -> dict[str, object]:
        """For the report."""
        return {
            "name": self.name,
            "device": self.device,
            "answered": self.answered,
            "failed": self.failed,
            "output_tokens": self.output_tokens,
            "steps": self.steps,
            "busy_ms": round(self.busy.total_ms, 3),
            "mean_running": round(self.running_sum / self.steps, 3) if self.steps else None,
            "deaths": self.deaths,
            "death_reasons": list(self.death_reasons),
        }


@dataclass(slots=True, kw_only=True)
class FleetAccount:
    """Counts of a fleet.

    Attributes:
        placement: by name.
        has_measured_models: whether placement goes by measured models of time, not by assumed ones.
        clock_error_ms: by how much times of one replica may be off the run's clock, at most, at the start.
        replicas: of each.
        replaced_replicas: those that came in the place of dead ones.
        placed_again: requests of dead ones, as often as each was placed again.
        moved: requests that the placement moved to another replica.
    """

    placement: str
    has_measured_models: bool
    clock_error_ms: float
    replicas: list[ReplicaAccount] = field(default_factory=list)
    replaced_replicas: int = 0
    placed_again: int = 0
    moved: int = 0

    def as_json(self) -> Mapping[str, object]:
        """For the report."""
        return {
            "scope": "this session",
            "placement": self.placement,
            "models": "measured" if self.has_measured_models else "assumed",
            "clock_error_ms": round(self.clock_error_ms, 3),
            "replaced_replicas": self.replaced_replicas,
            "requests_placed_again": self.placed_again,
            "requests_moved": self.moved,
            "replicas": [replica.as_json() for replica in self.replicas],
        }
