"""How many requests on each replica need their tokens faster than some time, as requests come and go."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from caraserve_cli.perf.batch_load import FloatArray

Int32Array: TypeAlias = npt.NDArray[np.int32]

# Bounds are told apart by the exponent of a float32 and the first 6 bits of its mantissa: 64 cells for each
# factor of two, so that two in one cell differ by 1.6% at most. Time models are off by more than that.
_LOST_BITS = 23 - 6
_CELLS_PER_OCTAVE = 64
# The first and the last cell have all that is below and above: 1/8 ms to 16 s for one token.
_LEAST_MS = 0.125
_NUM_OCTAVES = 17
_MOST_MS = _LEAST_MS * 2**_NUM_OCTAVES
_NUM_CELLS = _CELLS_PER_OCTAVE * _NUM_OCTAVES
_FIRST_CELL = int(np.float32(_LEAST_MS).view(np.int32)) >> _LOST_BITS
_LAST_CELL = _FIRST_CELL + _NUM_CELLS - 1


class BoundTally:
    """Bounds in milliseconds for one token, of the requests on N replicas."""

    def __init__(self, num_replicas: int) -> None:
        # [N, cells]: how many bounds lie in cells before each one. One row is written when a request comes
        # or goes; one element of each row is read for a decision.
        self._num_before = np.zeros((num_replicas, _NUM_CELLS), dtype=np.int32)
        self._row = np.arange(num_replicas, dtype=np.int32) * _NUM_CELLS - _FIRST_CELL

    def add(self, replica: int, bound_ms: float, change: int = 1) -> None:
        """`change` more requests with a bound are on a replica; an infinite bound is none."""
        if bound_ms < math.inf:
            # Beyond a float32 nothing is told apart either.
            bits = int(np.float32(min(max(bound_ms, 0.0), _MOST_MS)).view(np.int32))
            cell = min(max(bits >> _LOST_BITS, _FIRST_CELL), _LAST_CELL) - _FIRST_CELL
            self._num_before[replica, cell + 1 :] += change

    def num_broken(self, token_ms: FloatArray) -> Int32Array:
        """How many bounds are broken on each replica, shape [N].

        Args:
            token_ms: what a token takes on each replica, shape [N]; a bound is broken if it lies in a cell
                before that, which no bound within 1.6% does.
        """
        cells = token_ms.astype(np.float32).view(np.int32)
        cells >>= _LOST_BITS
        np.maximum(cells, _FIRST_CELL, out=cells)
        np.minimum(cells, _LAST_CELL, out=cells)
        cells += self._row
        num_broken: Int32Array = self._num_before.take(cells)
        return num_broken
