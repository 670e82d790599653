"""Where the adapter is."""

from __future__ import annotations

from caraserve_cli.placement.holders import find_room
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
        roomy, holders = find_room(request, loads)
        if not len(roomy):
            return None
        if request.adapter is not None and not len(holders):
            return drawn_by(request.adapter, roomy, loads.keys)
        candidates = roomy if request.adapter is None else holders
        return drawn_by(request.id, with_fewest(loads.num_requests, candidates), loads.keys)
