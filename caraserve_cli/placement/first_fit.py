"""The first replica that fits, as Punica packs a fleet."""

from __future__ import annotations

from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.request_facts import RequestFacts


class FirstFitPlacement:
    """The first replica, in the order of the list, on which a request waits for nobody's end: few replicas
    are full, and the others idle. A request for which there is none waits."""

    name = "first-fit"

    def choose(self, request: RequestFacts, loads: ReplicaLoads) -> int | None:
        """See `Placement.choose`."""
        fits = loads.has_room(request)
        fits &= loads.shortage(request, loads.num_new(request)) == 0
        candidates = fits.nonzero()[0]
        return int(candidates[0]) if len(candidates) else None
