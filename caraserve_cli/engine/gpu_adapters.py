"""The adapters of a GPU's runner: host store, device pool, and the ways from one to the other."""

from __future__ import annotations

from functools import partial

from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.adapters.transfer import Stall
from caraserve_cli.coldstart.assistant import Assistant
from caraserve_cli.core import ColdStart
from caraserve_cli.engine.host_adapters import ADAPTER_WAIT_S, HostAdapters
from caraserve_cli.step_plan import AdapterLoad, AdapterLoan, AdapterMove


class GpuAdapters(HostAdapters):
    """Implements `depot.AdapterDepot`.

    Args:
        host_store: where adapters are loaded from, packed.
        pool: where they are loaded to.
        assistant: CPU workers that compute with cold ones; None where there are none.
    """

    def __init__(self, host_store: HostStore, pool: PackedPool, assistant: Assistant | None) -> None:
        super().__init__(host_store, assistant)
        self._pool = pool

    def load(self, load: AdapterLoad) -> None:
        """Bring an adapter into a slot, beneath the next launch, which waits for each layer as it needs it.

        Raises:
            AdapterError: its files have become unreadable since it was first seen.
        """
        weights = self._host_store.acquire(load.adapter)
        on_arrival = partial(self._host_store.release, load.adapter)
        if load.how is ColdStart.CPU_ASSIST and self._assistant is not None:
            self._assistant.note(load.adapter_slot, weights)
            # Workers may still read it when all of it is on the device.
            on_arrival = partial(self._assistant.call_when_over, on_arrival)
        is_waited_for = load.how in (ColdStart.ON_DEMAND, ColdStart.ON_DEMAND_BLOCKING)
        self._pool.load(
            load.adapter_slot,
            weights,
            load.offset_bytes,
            LayerOrder(load.cpu_layers, in_one_piece=is_waited_for, in_turn=is_waited_for or load.is_held),
            on_arrival,
            is_beside=load.is_beside,
        )

    def lend(self, loan: AdapterLoan) -> None:
        """See `AdapterDepot`."""
        weights = self._lend(loan)
        assert weights.packed is not None
        self._pool.note_groups(weights.packed.layout)

    def evict(self, adapter_slot: int) -> None:
        """Free a slot of the device pool."""
        self._pool.evict(adapter_slot)

    def move(self, move: AdapterMove) -> None:
        """Slide an adapter's extent down."""
        self._pool.move(move)

    def begin_copies(self) -> None:
        """See `AdapterDepot`."""
        self._pool.start_copies()
        self._pool.transfers.begin()

    def wait(self) -> None:
        """See `AdapterDepot`."""
        self.begin_copies()  # of what a launch that failed has left
        if self._pool.transfers.are_over:
            self._host_store.wait_until_ready(ADAPTER_WAIT_S)
        else:
            self._pool.transfers.block(ADAPTER_WAIT_S)

    def has_arrived(self, adapter_slot: int) -> bool:
        """See `AdapterSupply`."""
        return self._pool.has_arrived(adapter_slot)

    def load_ms(self, adapter_slot: int) -> float | None:
        """See `AdapterSupply`."""
        return self._pool.load_ms(adapter_slot)

    def take_stall(self) -> Stall:
        """See `AdapterDepot`."""
        return self._pool.transfers.take_stall()

    @property
    def copied_bytes(self) -> int:
        """See `AdapterDepot`."""
        return self._pool.transfers.opened_bytes

    @property
    def link_bytes_per_ms(self) -> float | None:
        """See `AdapterSupply`."""
        return self._pool.transfers.bytes_per_ms

    @property
    def link_backlog_ms(self) -> float:
        """See `AdapterSupply`."""
        return self._pool.transfers.backlog_ms
