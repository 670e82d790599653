"""Any replica, with the same probability."""

from __future__ import annotations

from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.request_facts import RequestFacts
from caraserve_cli.placement.tie_break import drawn_by


class RandomPlacement:
    """Any replica with room; which one follows from the seed and the request's id, and from no other choice
    before it.

    Args:
        seed: of the run.
    """

    name = "random"

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed

    def choose(self, request: RequestFacts, loads: ReplicaLoads) -> int | None:
        """See `Placement.choose`."""
        candidates = loads.has_room(request).nonzero()[0]
        return drawn_by(f"{self._seed} {request.id}", candidates, loads.keys) if len(candidates) else None
