"""What an engine needs of whoever keeps its adapters. Says nothing of how it is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from caraserve_cli.adapters.transfer import Stall
from caraserve_cli.engine.cold_starts import AdapterSupply
from caraserve_cli.step_plan import AdapterLoad, AdapterLoan, AdapterMove


class AdapterDepot(AdapterSupply, Protocol):
    """The adapters of a runner: in host memory, on their way, and on the device."""

    def load(self, load: AdapterLoad) -> None:
        """Bring an adapter to the device, beneath the next launch.

        Raises:
            AdapterError: its files have become unreadable since it was first seen.
        """
        ...

    def lend(self, loan: AdapterLoan) -> None:
        """Have CPU workers compute with an adapter in the next launch, where it lies in host memory. It is
        not brought to the device.

        Raises:
            AdapterError: its files have become unreadable since it was first seen.
        """
        ...

    def evict(self, adapter_slot: int) -> None:
        """Forget what is in a slot."""
        ...

    def move(self, move: AdapterMove) -> None:
        """Slide what is in a slot to a lower address."""
        ...

    def begin_copies(self) -> None:
        """Begin to copy what was loaded and no launch has begun."""
        ...

    def prefetch(self, adapters: Sequence[str]) -> None:
        """Have adapters that will be needed soon, in this order, read into host memory meanwhile."""
        ...

    def take_stall(self) -> Stall:
        """For how long what was launched since this was last asked for stands still, until adapters have
        come."""
        ...

    @property
    def copied_bytes(self) -> int:
        """Bytes of adapters that were given to be copied to the device so far."""
        ...

    @property
    def num_lost_workers(self) -> int:
        """CPU workers that have died so far, as far as was noticed."""
        ...

    def wait(self) -> None:
        """Wait for a moment, or until something that was prefetched or loaded has arrived."""
        ...
