"""Where a request could go, and where its adapter is already."""

from __future__ import annotations

from caraserve_cli.perf.batch_load import IntArray
from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.request_facts import RequestFacts


def find_room(request: RequestFacts, loads: ReplicaLoads) -> tuple[IntArray, IntArray]:
    """Replicas with room for the request, and those of them that have its adapter on the device or on its way
    there: none for the base alone."""
    has_room = loads.has_room(request)
    roomy: IntArray = has_room.nonzero()[0]
    if request.adapter is None or not len(roomy):
        return roomy, roomy[:0]
    holders = loads.places.holders(request.adapter)
    return roomy, holders[has_room[holders]]
