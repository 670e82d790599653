"""A request of a simulated fleet, and what it experienced. Data and nothing but data."""

from __future__ import annotations

from dataclasses import dataclass

from caraserve_cli.core import AdapterInfo, ColdStart
from caraserve_cli.placement.request_facts import RequestFacts


@dataclass(frozen=True, slots=True)
class SimulatedRequest:
    """One request.

    Attributes:
        facts: what a placement knows of it, its arrival and the length that is expected of its answer.
        adapter: the one that it names; None for the base alone.
        output_tokens: of its answer, which neither placement nor scheduler know before it ends.
        max_output_tokens: at least `output_tokens`; what the scheduler knows, as `max_tokens`.
    """

    facts: RequestFacts
    adapter: AdapterInfo | None
    output_tokens: int
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer; times are milliseconds on the virtual clock.

    Attributes:
        replica: its index.
        first_scheduled_ms: when it was first taken into a step.
        cold_start: how its adapter came to the device.
    """

    request: SimulatedRequest
    replica: int
    first_scheduled_ms: float
    first_token_ms: float
    last_token_ms: float
    cold_start: ColdStart
    num_preemptions: int

    @property
    def ttft_ms(self) -> float:
        """From its arrival, wherever it waited."""
        return self.first_token_ms - self.request.facts.arrival_ms

    @property
    def latency_ms(self) -> float:
        """From its arrival to its last token."""
        return self.last_token_ms - self.request.facts.arrival_ms

    @property
    def time_per_token_ms(self) -> float:
        """The paper's measure: latency over the tokens of the answer."""
        return self.latency_ms / self.request.output_tokens

    @property
    def tpot_ms(self) -> float | None:
        """Mean gap between tokens; None for one token."""
        num_gaps = self.request.output_tokens - 1
        return (self.last_token_ms - self.first_token_ms) / num_gaps if num_gaps else None
