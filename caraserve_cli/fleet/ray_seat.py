"""The place of one replica in a crew of Ray actors: whoever has it now, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from caraserve_cli.fleet.host_clock import SAME_CLOCK, ClockOffset
from caraserve_cli.fleet.messages import HostFacts, MachineShare


@dataclass(slots=True)
class RaySeat:
    """One index of a crew.

    Attributes:
        name: for people.
        actor: a handle of whoever has it now.
        host: where that is, or was; None until it is known.
        share: of that machine.
        offset: of its clock.
        shipped: adapters whose files it was sent; None where it sees them.
        is_dead: whether who had it last is gone, and nobody has come in its place yet, or ever will.
    """

    name: str
    actor: Any
    host: HostFacts | None = None
    share: MachineShare | None = None
    offset: ClockOffset = SAME_CLOCK
    shipped: set[str] | None = None
    is_dead: bool = False

    @property
    def place(self) -> str:
        """Name and machine, for people."""
        return self.name if self.host is None else f"{self.name} on {self.host.host_name}"

    def dismiss(self) -> None:
        """Kill the process, if it is there."""
        ray.kill(self.actor, no_restart=True)
