"""What every placement policy offers: the fleet and the simulator know no more of it.

Policies are pure: a request's facts and the loads in, an index out. Who calls them books the choice
(`ReplicaLoads.place`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from caraserve_cli.placement.loads import ReplicaLoads
from caraserve_cli.placement.migration import Migration
from caraserve_cli.placement.request_facts import RequestFacts


class Placement(Protocol):
    """Chooses a replica for each request.

    Attributes:
        name: as it is written after `--placement`.
    """

    @property
    def name(self) -> str: ...

    def choose(self, request: RequestFacts, loads: ReplicaLoads) -> int | None:
        """The index of a replica that has room for a request; None if it has to wait until something ends.

        Whoever asks for several requests asks in the order of their arrival, and lets none pass one that
        waits, except where that one fits no open replica even alone: then nobody starves.
        """
        ...


@runtime_checkable
class MigratingPlacement(Placement, Protocol):
    """A placement that changes its mind: it also moves what waits."""

    def rebalance(self, loads: ReplicaLoads) -> Sequence[Migration]:
        """What to move now, in this order; may be asked at any time, and answers nothing if all is well."""
        ...
