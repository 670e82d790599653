"""How fast the requests on each replica need their tokens, as requests come and go."""

from __future__ import annotations

import math

import numpy as np

from caraserve_cli.placement.nearness import bound_of, nearness_there

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
        # How many bounds are in each cell that has any. A run has a handful, or as many as deadlines.
        self._counts: list[dict[int, int]] = [{} for _ in range(num_replicas)]
        self._num_bounds = [0] * num_replicas

    def add(self, replica: int, bound_ms: float, change: int = 1) -> None:
        """`change` more requests with a bound are on a replica; an infinite bound is none."""
        if bound_ms == math.inf:
            return
        # Beyond a float32 nothing is told apart either.
        bits = int(np.float32(min(max(bound_ms, 0.0), _MOST_MS)).view(np.int32))
        cell = min(max(bits >> _LOST_BITS, _FIRST_CELL), _LAST_CELL) - _FIRST_CELL
        counts = self._counts[replica]
        counts[cell] = counts.get(cell, 0) + change
        if not counts[cell]:
            del counts[cell]
        self._num_bounds[replica] += change

    def common_ms(self, replica: int, num_requests: int, token_ms: float) -> float:
        """The bound that all requests on a replica could have instead of their own, and a millisecond more
        for each token would count as much for all of them together (`nearness_there`); infinite if none has
        one, or all are lost.

        Args:
            replica: its index.
            num_requests: there, with bounds and without.
            token_ms: what a token takes there.
        """
        num_bounds = self._num_bounds[replica]
        if not num_bounds:
            return math.inf
        # An exact sum, so that it does not depend on who came first.
        bound_count = math.fsum(
            number * nearness_there(token_ms, _BOUNDS_MS[cell])
            for cell, number in self._counts[replica].items()
        )
        return bound_of((num_requests - num_bounds + bound_count) / num_requests, token_ms)


def _middle_ms(cell: int) -> float:
    """The bound that a cell stands for."""
    octave, place = divmod(cell, _CELLS_PER_OCTAVE)
    return _LEAST_MS * 2.0**octave * (1 + (place + 0.5) / _CELLS_PER_OCTAVE)


_BOUNDS_MS = [_middle_ms(cell) for cell in range(_NUM_CELLS)]
