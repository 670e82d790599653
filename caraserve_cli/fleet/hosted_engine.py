"""A local replica inside the process of a replica, and what the driver's placement wants to know of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from caraserve_cli.adapters.library import AdapterLibrary
from caraserve_cli.events import StepRecord
from caraserve_cli.fleet.cold_start import find_profile
from caraserve_cli.fleet.local import LocalReplica
from caraserve_cli.fleet.messages import ReplicaDescription
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.surroundings import AdapterSource, Surroundings


class MovedAdapters(NamedTuple):
    """Names of adapters that came to the device, or left it."""

    came: list[str]
    left: list[str]


class HostedEngine:
    """The replica, ready to answer.

    Args:
        options: of the replica.
        clock_ms: the run's clock.
        on_step: told of every step.
        library: of the adapters; None for those in the options' folders.

    Attributes:
        replica: in this process.
        description: of it.

    Raises:
        CaraServeError: an option or the base cannot be honoured here.
    """

    def __init__(
        self,
        options: ReplicaOptions,
        clock_ms: Callable[[], float],
        on_step: Callable[[StepRecord], None],
        library: AdapterLibrary | None = None,
    ) -> None:
        started_s = time.perf_counter()
        self._clock_ms = clock_ms
        self._on_step = on_step
        self._has_moved = False
        self._resident: set[str] = set()
        self._decoding: set[str] = set()
        adapters = None if library is None else AdapterSource(library)
        self._surroundings = Surroundings.prepare(options, adapters)
        self.replica = LocalReplica(self._surroundings, options, clock_ms, self)
        self.description = self._describe(options, time.perf_counter() - started_s)

    def on_step(self, record: StepRecord) -> None:
        """See `EventSink`."""
        self._has_moved |= record.num_adapter_loads > 0
        self._on_step(record)

    def take_started(self) -> list[str]:
        """Requests whose first token is there since the last call, or again after a preemption."""
        before, self._decoding = self._decoding, set(self.replica.decoding_ids)
        return list(self._decoding - before)

    def take_moved_adapters(self) -> MovedAdapters:
        """Since the last call. Nothing leaves but for what comes."""
        if not self._has_moved:
            return MovedAdapters([], [])
        self._has_moved = False
        before, self._resident = self._resident, set(self.replica.resident_adapters)
        return MovedAdapters(sorted(self._resident - before), sorted(before - self._resident))

    def link_free_ms(self) -> float:
        """When the copies under way will have ended, on the run's clock."""
        return self._clock_ms() + self.replica.link_backlog_ms

    def close(self) -> None:
        """End what belongs to it."""
        self.replica.close()
        self._surroundings.host_store.close()

    def _describe(self, options: ReplicaOptions, startup_s: float) -> ReplicaDescription:
        surroundings = self._surroundings
        return ReplicaDescription(
            device=surroundings.device_description,
            memory=surroundings.memory.describe(),
            config=surroundings.engine_config,
            shape=surroundings.base.config.shape,
            dtype=str(surroundings.dtype).removeprefix("torch."),
            profile=find_profile(options, surroundings.dtype, surroundings.device),
            is_padded=options.lora_kernel == "bgmv",
            is_on_gpu=surroundings.copies_adapters,
            num_cpu_workers=self.replica.num_cpu_workers,
            startup_s=startup_s,
        )
