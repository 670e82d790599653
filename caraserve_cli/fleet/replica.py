"""What a run needs of whatever answers its requests: one engine in this process, or many elsewhere.

Driver and replicas exchange lists of requests and outcomes, never one a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from caraserve_cli.core import Request
from caraserve_cli.fleet.messages import Outcome as Outcome


class Replica(Protocol):
    """Answers requests; every submitted request leaves exactly once, as a completion or a failure."""

    @property
    def num_unfinished(self) -> int:
        """Requests submitted and not yet returned by `poll`."""
        ...

    @property
    def num_running(self) -> int:
        """Requests that were part of the last step."""
        ...

    def submit(self, requests: Sequence[Request]) -> None: ...

    def poll(self, most_wait_s: float = 0.0) -> list[Outcome]:
        """Go on working, and return what has ended since the last call. Empty lists are normal.

        Args:
            most_wait_s: how long to wait for something to end, where others do the work.

        Raises:
            CaraServeError: it cannot go on.
        """
        ...

    def close(self) -> None:
        """End what belongs to it; it answers nothing any more."""
        ...
