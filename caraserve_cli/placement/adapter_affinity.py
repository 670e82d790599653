"""Where the adapter is."""

from __future__ import annotations

from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.request_facts import RequestFacts
from caraserve_cli.placement.tie_break import drawn_by, with_fewest


class AdapterAffinityPlacement:
    """Of the replicas with room, those that have the request's adapter on the device or on its way there, and
    of these the one with the fewest requests. If none has it, the one that the adapter's name draws: its home
    for as long as the fleet does not change. The base alone is at home everywhere.
    """

    name = "adapter-affinity"

    def choose(self, request: RequestFacts, loads: ReplicaLoads) -> int | None:
        """See `Placement.choose`."""
        has_room = loads.has_room(request)
        candidates = has_room.nonzero()[0]
        if not len(candidates):
            return None
        if request.adapter is not None:
            holders = loads.places.holders(request.adapter)
            holders = holders[has_room[holders]]
            if not len(holders):
                return drawn_by(request.adapter, candidates, loads.keys)
            candidates = holders
        return drawn_by(request.id, with_fewest(loads.num_requests, candidates), loads.keys)
