"""Which replicas use an adapter, on which it is on the device or on its way there, and where it cannot come.

Who is on a device is what replicas report; until one does, it is assumed that an adapter comes where a
request for it was placed, and stays.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from caraserve_cli.perf.batch_load import FloatArray, IntArray
from caraserve_cli.placement.replica_values import ReplicaValues

_NOWHERE: IntArray = np.empty(0, dtype=np.int64)


class AdapterPlaces:
    """Adapters by name, replicas by index."""

    def __init__(self, num_replicas: int) -> None:
        self._num_replicas = num_replicas
        # Adapters that are used nowhere, or are on no device, are in neither.
        self._num_users: dict[str, ReplicaValues] = {}
        self._ready_ms: dict[str, ReplicaValues] = {}
        self._unusable: dict[str, set[int]] = {}

    def use(self, adapter: str, replica: int) -> bool:
        """One more request there has this adapter; whether it is the first one."""
        users = self._num_users.setdefault(adapter, ReplicaValues())
        num_users = users.get(replica, 0.0) + 1
        users.put(replica, num_users)
        return num_users == 1

    def end_use(self, adapter: str, replica: int) -> bool:
        """One request less; whether it was the last one there.

        Raises:
            KeyError: no request uses the adapter.
        """
        users = self._num_users[adapter]
        num_users = users.get(replica, 0.0) - 1
        if num_users > 0:
            users.put(replica, num_users)
            return False
        users.drop(replica)
        if not users:
            del self._num_users[adapter]
        return True

    def num_new(self, adapter: str) -> FloatArray:
        """0.0 where a request uses the adapter, 1.0 where none does, shape [N]."""
        num_new = np.ones(self._num_replicas)
        if users := self._num_users.get(adapter):
            num_new[users.replicas] = 0.0
        return num_new

    def holders(self, adapter: str) -> IntArray:
        """Where the adapter is on the device or on its way, in no particular order."""
        places = self._ready_ms.get(adapter)
        return places.replicas if places else _NOWHERE

    def has(self, adapter: str, replica: int) -> bool:
        """Whether the adapter is on the device there, or on its way."""
        places = self._ready_ms.get(adapter)
        return places is not None and replica in places

    def note_loading(self, adapter: str, replica: int, ready_ms: float) -> None:
        """The adapter will be on the device at `ready_ms`."""
        self._ready_ms.setdefault(adapter, ReplicaValues()).put(replica, ready_ms)

    def note_resident(self, adapter: str, replica: int) -> None:
        """The adapter is on the device."""
        self.note_loading(adapter, replica, -math.inf)

    def note_gone(self, adapter: str, replica: int) -> None:
        """The adapter has left the device, or never came; nothing, if nobody thought that it was there."""
        if places := self._ready_ms.get(adapter):
            places.drop(replica)
            if not places:
                del self._ready_ms[adapter]

    def note_unusable(self, adapter: str, replica: int) -> None:
        """The adapter cannot come there: its files cannot be read on that machine, or are others."""
        self._unusable.setdefault(adapter, set()).add(replica)
        self.note_gone(adapter, replica)

    def unusable_on(self, adapter: str) -> Collection[int]:
        """Where the adapter cannot come."""
        return self._unusable.get(adapter, ())

    def note_same_unusable(self, others: AdapterPlaces) -> None:
        """What others, of the same replicas, have noted is noted here too."""
        for adapter, replicas in others._unusable.items():
            for replica in replicas:
                self.note_unusable(adapter, replica)

    def forget_replica(self, replica: int) -> None:
        """Nothing is on a device that is gone, and who comes in its place may be on another machine."""
        for adapter in list(self._ready_ms):
            self.note_gone(adapter, replica)
        for replicas in self._unusable.values():
            replicas.discard(replica)

    def until_ready_ms(self, adapter: str, cold_ms: FloatArray, now_ms: float) -> FloatArray:
        """Milliseconds until the adapter is on each device, shape [N].

        Args:
            adapter: by name.
            cold_ms: the same where it is neither there nor on its way, shape [N]; is written over.
            now_ms: on the same clock as the loads.
        """
        if places := self._ready_ms.get(adapter):
            cold_ms[places.replicas] = np.maximum(places.values - now_ms, 0.0)
        return cold_ms
