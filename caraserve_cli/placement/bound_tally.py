"""How fast the requests on each replica need their tokens, as requests come and go."""

from __future__ import annotations

import math

import numpy as np

from caraserve_cli.placement.nearness import bound_of, nearness

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
# The bound that each cell stands for: in the middle of it.
_CELLS = np.arange(_NUM_CELLS)
_BOUNDS_MS = _LEAST_MS * 2.0 ** (_CELLS // _CELLS_PER_OCTAVE)
_BOUNDS_MS *= 1 + (_CELLS % _CELLS_PER_OCTAVE + 0.5) / _CELLS_PER_OCTAVE


class BoundTally:
    """Bounds in milliseconds for one token, of the requests on N replicas."""

    def __init__(self, num_replicas: int) -> None:
        self._counts = np.zeros((num_replicas, _NUM_CELLS), dtype=np.int32)
        self._num_bounds = [0] * num_replicas

    def add(self, replica: int, bound_ms: float, change: int = 1) -> None:
        """`change` more requests with a bound are on a replica; an infinite bound is none."""
        if bound_ms < math.inf:
            # Beyond a float32 nothing is told apart either.
            bits = int(np.float32(min(max(bound_ms, 0.0), _MOST_MS)).view(np.int32))
            cell = min(max(bits >> _LOST_BITS, _FIRST_CELL), _LAST_CELL) - _FIRST_CELL
            self._counts[replica, cell] += change
            self._num_bounds[replica] += change

    def common_ms(self, replica: int, num_requests: int, token_ms: float) -> float:
        """The bound that all requests on a replica could have instead of their own, and a millisecond more
        for each token would count as much for all of them together (`nearness`); infinite if none has one.

        Args:
            replica: its index.
            num_requests: there, with bounds and without.
            token_ms: what a token takes there.
        """
        num_bounds = self._num_bounds[replica]
        if not num_bounds:
            return math.inf
        counts = self._counts[replica]
        cells = counts.nonzero()[0]
        all_count = num_requests - num_bounds + counts[cells] @ nearness(token_ms, _BOUNDS_MS[cells])
        return bound_of(float(all_count) / num_requests, token_ms)
