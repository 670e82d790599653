"""What a fleet's driver needs of its replicas, wherever they are: it sends lists, and is told what happened.

Knows no placement and no Ray. In tests replicas may be in the driver's process and answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from caraserve_cli.core import Request
from caraserve_cli.fleet.messages import ReplicaDescription, ReplicaNews


@dataclass(frozen=True, slots=True)
class Told:
    """A replica told what happened there."""

    replica: int
    news: ReplicaNews


@dataclass(frozen=True, slots=True)
class Died:
    """A replica is gone, or the one that was to replace it did not come to life; `reason` is for people."""

    replica: int
    reason: str


@dataclass(frozen=True, slots=True)
class Replaced:
    """Another one is there in a dead replica's place, empty."""

    replica: int
    description: ReplicaDescription


CrewEvent: TypeAlias = Told | Died | Replaced


class Crew(Protocol):
    """Replicas by index.

    Attributes:
        names: of each, for people; no two are equal.
        descriptions: of each, as it started.
    """

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def descriptions(self) -> Sequence[ReplicaDescription]: ...

    def submit(self, replica: int, requests: Sequence[Request]) -> None:
        """Send requests to a replica that lives, in this order; does not wait for it. What is sent to one
        that dies meanwhile is lost."""
        ...

    def wait(self, most_wait_s: float) -> list[CrewEvent]:
        """Wait until something happens; all that happened. After `Died` a replica tells nothing more, until
        it is replaced."""
        ...

    def replace(self, replica: int) -> None:
        """Start another replica in the place of a dead one; `Replaced` or `Died` tells what came of it."""
        ...

    def close(self) -> None:
        """End all replicas, whatever they are doing."""
        ...
