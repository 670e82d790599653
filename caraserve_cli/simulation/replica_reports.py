"""Whom a simulated replica tells what happens on it."""

from __future__ import annotations

from typing import Protocol

from caraserve_cli.core import Failure
from caraserve_cli.simulation.simulated_request import Answered, SimulatedRequest


class ReplicaReports(Protocol):
    """Whom a replica tells what happens, when it happens."""

    def on_first_token(self, request: SimulatedRequest) -> None: ...

    def on_answer(self, answered: Answered) -> None: ...

    def on_failure(self, request: SimulatedRequest, failure: Failure) -> None:
        """It will have no answer."""
        ...

    def on_load(self, replica: int, adapter: str, ready_ms: float, link_free_ms: float) -> None:
        """An adapter will be on the device at `ready_ms`, and the link then is free at `link_free_ms`."""
        ...

    def on_eviction(self, replica: int, adapter: str) -> None: ...

    def on_assist(self, replica: int, until_ms: float) -> None:
        """CPU workers compute until then."""
        ...
