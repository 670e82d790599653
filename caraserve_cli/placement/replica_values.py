"""A number for some of the replicas, such as those that have an adapter."""

from __future__ import annotations

import numpy as np

from caraserve_cli.perf.batch_load import FloatArray, IntArray

_FIRST_SIZE = 4


class ReplicaValues:
    """A map from replicas' indices to numbers, kept as two arrays side by side: it is read for all replicas
    at once, and takes no more memory than there are replicas in it."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._replicas = np.empty(_FIRST_SIZE, dtype=np.int64)
        self._values = np.empty(_FIRST_SIZE)

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, replica: int) -> bool:
        return replica in self._place

    @property
    def replicas(self) -> IntArray:
        """Those that have a number, in no particular order; changes with the map."""
        return self._replicas[: len(self._place)]

    @property
    def values(self) -> FloatArray:
        """Their numbers, in the same order; changes with the map."""
        return self._values[: len(self._place)]

    def get(self, replica: int, default: float) -> float:
        """The number of a replica, or `default`."""
        place = self._place.get(replica)
        return default if place is None else float(self._values[place])

    def put(self, replica: int, value: float) -> None:
        """Give a replica a number, in place of its last one."""
        place = self._place.setdefault(replica, len(self._place))
        if place == len(self._values):
            self._replicas = np.concatenate((self._replicas, np.empty_like(self._replicas)))
            self._values = np.concatenate((self._values, np.empty_like(self._values)))
        self._replicas[place], self._values[place] = replica, value

    def drop(self, replica: int) -> None:
        """A replica has no number any more; nothing if it had none. The last one takes its place."""
        place = self._place.pop(replica, None)
        if place is None or place == len(self._place):
            return
        last = int(self._replicas[len(self._place)])
        self._replicas[place], self._values[place] = last, self._values[len(self._place)]
        self._place[last] = place
