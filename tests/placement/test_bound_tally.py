"""Bounds of any size are counted, and nobody is warned of the largest."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from caraserve_cli.placement.bound_tally import BoundTally


@pytest.mark.parametrize("bound_ms", [-1e300, 0.0, 5e-324, 1.0, 16_384.0, 1e39, 1.7e308])
def test_any_bound_comes_and_goes(bound_ms: float) -> None:
    tally = BoundTally(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tally.add(1, bound_ms)
        assert tally.num_broken(np.array([1e6, 1e6])).tolist() == [0, int(bound_ms < 16_000)]
        tally.add(1, bound_ms, -1)
        tally.add(1, math.inf)
    assert tally.num_broken(np.array([1e6, 1e6])).tolist() == [0, 0]
