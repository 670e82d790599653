"""What every runner's adapters have in common: a store in host memory, and CPU workers that read from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.weights import AdapterWeights
from caraserve_cli.coldstart.assistant import Assistant
from caraserve_cli.step_plan import AdapterLoan

# How long a replica that has nothing but adapters to wait for does so before it looks for other work.
ADAPTER_WAIT_S = 0.001


class HostAdapters:
    """The host's part of `depot.AdapterDepot`.

    Args:
        host_store: where adapters are read to.
        assistant: CPU workers that compute with cold ones; None where there are none.
    """

    def __init__(self, host_store: HostStore, assistant: Assistant | None) -> None:
        self._host_store, self._assistant = host_store, assistant
        self._lent: list[str] = []  # for the last launch

    def lend(self, loan: AdapterLoan) -> None:
        """See `AdapterDepot`."""
        self._lend(loan)

    def _lend(self, loan: AdapterLoan) -> AdapterWeights:
        assert self._assistant is not None, "only CPU workers are lent adapters"
        weights = self._host_store.acquire(loan.adapter)
        self._lent.append(loan.adapter)
        self._assistant.note(loan.adapter_slot, weights)
        return weights

    def prefetch(self, adapters: Sequence[str]) -> None:
        """See `AdapterDepot`."""
        if self._assistant is not None:
            # What was lent was launched since; workers may still read it.
            for adapter in self._lent:
                self._assistant.call_when_over(partial(self._host_store.release, adapter))
            self._lent.clear()
            self._assistant.settle()
        self._host_store.prefetch(adapters)

    def is_ready(self, adapter: str) -> bool:
        """See `AdapterSupply`."""
        return self._host_store.is_ready(adapter)

    def ready_ms(self, adapter: str) -> float:
        """See `AdapterSupply`."""
        return self._host_store.kept_ms(adapter)

    def can_assist(self, adapter: str) -> bool:
        """See `AdapterSupply`."""
        return self._assistant is not None and self._host_store.is_shared(adapter)

    @property
    def num_lost_workers(self) -> int:
        """See `AdapterDepot`."""
        return 0 if self._assistant is None else self._assistant.num_lost_workers

    @property
    def free_workers(self) -> int:
        """See `AdapterSupply`."""
        return 0 if self._assistant is None else self._assistant.num_workers

    @property
    def most_assisted_tokens(self) -> int:
        """See `AdapterSupply`."""
        return 0 if self._assistant is None else self._assistant.max_tokens
