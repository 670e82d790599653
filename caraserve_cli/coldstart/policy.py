"""The strategies of a cold start: small pure classes that say how an arrival's adapter comes to the device.

    on-demand           the request waits until all of its adapter is there; others go on
    on-demand-blocking  so does everybody: early systems load in the middle of a step
    stream              the request prefills at once, each layer as soon as it has been copied
    cpu-assist          the same, with CPU workers on the leading layers: so many that no layer waits; for who
                        ends with its first token on all layers, and its adapter need not come at all
    cached              all adapters are on the device before the clock starts; others come on demand
    auto                by the break-even model, for each arrival what costs least

All give the same answers. They know no queues and no tensors: the simulator and the engine ask the same
classes.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from caraserve_cli.coldstart.arrival import Arrival, Decision
from caraserve_cli.coldstart.break_even import BreakEven
from caraserve_cli.core import ColdStart
from caraserve_cli.errors import OptionError

__all__ = ["COLD_START_NAMES", "Arrival", "ColdStartPolicy", "Decision", "make_policy"]


class ColdStartPolicy(Protocol):
    """How arrivals are treated; `name` is what `--cold-start` calls it."""

    name: ClassVar[str]

    def decide(self, arrival: Arrival) -> Decision:
        """The way of one arrival. Equal arrivals get equal decisions."""


class OnDemand:
    """The whole adapter is copied, pinned and in one piece, before the request prefills."""

    name: ClassVar[str] = "on-demand"

    def decide(self, arrival: Arrival) -> Decision:
        """See `ColdStartPolicy`."""
        return Decision(ColdStart.ON_DEMAND)


class OnDemandBlocking:
    """The same, and the whole batch waits for it."""

    name: ClassVar[str] = "on-demand-blocking"

    def decide(self, arrival: Arrival) -> Decision:
        """See `ColdStartPolicy`."""
        return Decision(ColdStart.ON_DEMAND_BLOCKING)


class Stream:
    """Copied layer by layer beneath the prefill that uses it."""

    name: ClassVar[str] = "stream"

    def decide(self, arrival: Arrival) -> Decision:
        """See `ColdStartPolicy`."""
        return Decision(ColdStart.STREAM)


class CpuAssist:
    """CPU workers compute the leading layers, the fewest with which no layer waits for the link; or all of
    them, where the adapter need not be loaded then.

    Args:
        break_even: None where the machine is not known; CPU workers then compute all layers, so that the link
            is certainly not waited for, and nothing is loaded that need not be.
    """

    name: ClassVar[str] = "cpu-assist"

    def __init__(self, break_even: BreakEven | None) -> None:
        self._break_even = break_even

    def decide(self, arrival: Arrival) -> Decision:
        """See `ColdStartPolicy`. An arrival that CPU workers cannot help streams."""
        if not arrival.can_assist or not arrival.free_workers:
            return Decision(ColdStart.STREAM)
        if self._break_even is not None and self._break_even.can_assist(arrival):
            return self._break_even.assisted(arrival)
        return Decision(ColdStart.CPU_ASSIST, arrival.num_layers, spares_load=arrival.may_spare_load)


class Cached(OnDemand):
    """The ideal to compare with: nothing is cold but what does not fit the device; that comes on demand."""

    name: ClassVar[str] = "cached"


class Auto:
    """What the break-even model says."""

    name: ClassVar[str] = "auto"

    def __init__(self, break_even: BreakEven) -> None:
        self._break_even = break_even

    def decide(self, arrival: Arrival) -> Decision:
        """See `ColdStartPolicy`."""
        return self._break_even.best(arrival).decision


COLD_START_NAMES = tuple(each.name for each in (Auto, Stream, CpuAssist, OnDemand, OnDemandBlocking, Cached))

_WITHOUT_MODEL: dict[str, type[OnDemand | OnDemandBlocking | Stream]] = {
    each.name: each for each in (OnDemand, OnDemandBlocking, Stream, Cached)
}


def make_policy(name: str, break_even: BreakEven | None) -> ColdStartPolicy:
    """The strategy that `--cold-start` names.

    Args:
        name: one of COLD_START_NAMES.
        break_even: of this machine; None where nothing was measured.

    Raises:
        OptionError: there is no such strategy, or it needs what was not measured.
    """
    if name in _WITHOUT_MODEL:
        return _WITHOUT_MODEL[name]()
    if name == CpuAssist.name:
        return CpuAssist(break_even)
    if name != Auto.name:
        offered = ", ".join(each for each in COLD_START_NAMES if each != Cached.name)
        raise OptionError(f"--cold-start: no strategy '{name}'; choose from {offered}")
    if break_even is None:
        raise OptionError(
            "--cold-start: 'auto' needs a profile of this machine; run `caraserve profile` first"
        )
    return Auto(break_even)
