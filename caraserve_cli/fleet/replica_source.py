"""What answers the requests of a run, before it is started: one engine in this process, or a fleet.

What a run must know to read, check and journal requests is known from here without any weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.events import EventSink
from caraserve_cli.fleet.account import FleetAccount
from caraserve_cli.fleet.cold_start import what_auto_lacks
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.replica import Replica
from caraserve_cli.fleet.surroundings import Surroundings
from caraserve_cli.model.resolve import ResolvedBase
from caraserve_cli.model.tokenizer import Tokenizer


class ReplicaSource(Protocol):
    """Starts a `Replica` when there is something to answer.

    Attributes:
        base, tokenizer, library, dtype: of what is run.
        device_description: the device in words; of several all that differ.
        memory_description: how a replica's memory is shared out, in words; empty until that is known.
        most_running: requests that run at once.
        account: of a fleet that was started.
        notes: lines that a user should know before the first answer.
    """

    @property
    def base(self) -> ResolvedBase: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def library(self) -> AdapterLibrary: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def device_description(self) -> str: ...

    @property
    def memory_description(self) -> str: ...

    @property
    def most_running(self) -> int: ...

    @property
    def account(self) -> FleetAccount | None: ...

    @property
    def notes(self) -> Sequence[str]: ...

    def start(self, clock_ms: Callable[[], float], events: EventSink) -> Replica:
        """Load the base, once.

        Raises:
            CaraServeError: it cannot be loaded.
        """
        ...

    def close(self) -> None:
        """End what was prepared; the replica, if it was started, is closed before."""
        ...


class LocalSource:
    """One engine in this process.

    Args:
        options: of it.
        notes: as in `ReplicaSource`.

    Raises:
        OptionError: an option cannot be met on this machine.
        BaseModelError: the base is missing or cannot be honoured.
    """

    account: FleetAccount | None = None

    def __init__(self, options: ReplicaOptions, notes: Sequence[str] = ()) -> None:
        self._options = options
        self._surroundings = Surroundings.prepare(options)
        lacking = what_auto_lacks(options, self._surroundings.break_even, self._surroundings.device)
        self.notes = [*notes, *([] if lacking is None else [lacking])]

    @property
    def base(self) -> ResolvedBase:
        return self._surroundings.base

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._surroundings.tokenizer

    @property
    def library(self) -> AdapterLibrary:
        return self._surroundings.library

    @property
    def dtype(self) -> torch.dtype:
        return self._surroundings.dtype

    @property
    def device_description(self) -> str:
        return self._surroundings.device_description

    @property
    def memory_description(self) -> str:
        return self._surroundings.memory.describe()

    @property
    def most_running(self) -> int:
        return self._options.max_running

    def start(self, clock_ms: Callable[[], float], events: EventSink) -> Replica:
        """See `ReplicaSource.start`."""
        return LocalReplica(self._surroundings, self._options, clock_ms, events)

    def close(self) -> None:
        """See `ReplicaSource.close`."""
        self._surroundings.host_store.close()
