"""The replica with the fewest requests."""

from __future__ import annotations

from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.request_facts import RequestFacts
from caraserve_cli.placement.tie_break import drawn_by, with_fewest


class MostIdlePlacement:
    """The replica with room that has the fewest requests, queued and running; of several, the one that the
    request's id draws."""

    name = "most-idle"

    def choose(self, request: RequestFacts, loads: ReplicaLoads) -> int | None:
        """See `Placement.choose`."""
        candidates = loads.has_room(request).nonzero()[0]
        if not len(candidates):
            return None
        return drawn_by(request.id, with_fewest(loads.num_requests, candidates), loads.keys)
