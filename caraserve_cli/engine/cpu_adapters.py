"""The adapters of a CPU's runner: used from host memory, where nothing has to be copied."""

from __future__ import annotations

from caraserve_cli.adapters.device_pool import DevicePool
from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.transfer import Stall
from caraserve_cli.coldstart.assistant import Assistant
from caraserve_cli.core import ColdStart
from caraserve_cli.engine.host_adapters import ADAPTER_WAIT_S, HostAdapters
from caraserve_cli.engine.lora_batch import LoraBatcher
from caraserve_cli.step_plan import AdapterLoad, AdapterMove


class CpuAdapters(HostAdapters):
    """Implements `depot.AdapterDepot`.

    Args:
        host_store: where adapters are read to.
        pool: those in use.
        lora: told of what comes and goes.
        assistant: CPU workers that compute with cold ones; None where there are none.
    """

    link_backlog_ms = 0.0
    link_bytes_per_ms = None
    copied_bytes = 0

    def __init__(
        self, host_store: HostStore, pool: DevicePool, lora: LoraBatcher, assistant: Assistant | None
    ) -> None:
        super().__init__(host_store, assistant)
        self._pool, self._lora = pool, lora
        self._adapter_in: dict[int, str] = {}

    def load(self, load: AdapterLoad) -> None:
        """Bring an adapter into a slot; where it would lie in a pool has no meaning here.

        Raises:
            AdapterError: its files have become unreadable since it was first seen.
        """
        weights = self._host_store.acquire(load.adapter)
        if load.how is ColdStart.CPU_ASSIST and self._assistant is not None:
            self._assistant.note(load.adapter_slot, weights)
        self._pool.load(load.adapter_slot, weights)
        self._lora.add(load.adapter_slot)
        self._adapter_in[load.adapter_slot] = load.adapter

    def evict(self, adapter_slot: int) -> None:
        """Free a slot."""
        self._lora.remove(adapter_slot)
        self._pool.evict(adapter_slot)
        self._host_store.release(self._adapter_in.pop(adapter_slot))

    def move(self, move: AdapterMove) -> None:
        """Nothing to move: adapters have no place in a pool."""

    def begin_copies(self) -> None:
        """Nothing is copied."""

    def wait(self) -> None:
        """See `AdapterDepot`."""
        self._host_store.wait_until_ready(ADAPTER_WAIT_S)

    def has_arrived(self, adapter_slot: int) -> bool:
        """Adapters are used where they are."""
        return True

    def load_ms(self, adapter_slot: int) -> float | None:
        """Nothing is copied."""
        return None

    def take_stall(self) -> Stall:
        """Nothing is waited for."""
        return Stall()
