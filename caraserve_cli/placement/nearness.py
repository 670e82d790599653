"""How much the time of a token counts for a request that has a bound on it."""

from __future__ import annotations

import math

import numpy as np

from caraserve_cli.perf.batch_load import FloatArray

# A forecast of a request's time for a token is off: up to this much of its bound a request keeps it, and from
# that on it surely breaks it. Chosen, not measured: 19 of 20 steps are foreseen to within 5%
# (recipes/MEASURED.md), answers less well.
_KEEPS, _BREAKS = 0.9, 1.1
# A bound of 0, or one that has passed, is as lost as this one.
_LEAST_MS = 1e-9
_AT_KEEPS = 1 / math.sqrt(1 - _KEEPS)
_SLOPE = 0.5 * _AT_KEEPS**3


def nearness(token_ms: FloatArray, bound_ms: FloatArray | float) -> FloatArray:
    """What a millisecond for one token counts for a request, at least 1, which it counts without a bound.

    The share x of its bound that a token takes leaves 1 - x for all that is not foreseen: longer prompts
    beside it, a shorter answer. The less is left, the more a millisecond counts: 1 / √(1 - x). From `_KEEPS`
    on this goes on as a straight line, and does not end where the bound is. Beyond `_BREAKS` the bound is
    lost: what is taken, times what it counts, no longer grows, until a millisecond counts no more than
    without a bound.

    Args:
        token_ms: what a token takes, at least 0, shape [N].
        bound_ms: on that, a number or shape [N]; infinite for none; 0 or below for one that is lost whatever
            happens.

    Returns:
        Shape [N].
    """
    share = token_ms / np.maximum(bound_ms, _LEAST_MS)
    counts = 1 / np.sqrt(1 - np.minimum(share, _KEEPS))
    counts += _SLOPE * (np.minimum(np.maximum(share, _KEEPS), _BREAKS) - _KEEPS)
    lost: FloatArray = np.maximum(counts * (_BREAKS / np.maximum(share, _BREAKS)), 1.0)
    return lost


def nearness_there(token_ms: float, bound_ms: float) -> float:
    """`nearness` of one request that is placed, and 1 if its bound is lost there: who breaks it anyway need
    not be spared. Simulated with 12 replicas like an A10, two seeds of 40 s, 75 requests a second, bgmv: if
    lost ones count as in `nearness` / 1, 93.5 / 95.3% of bounds of 36 ms were kept, and 65 / 68% of bounds of
    30, 36 and 45 ms and none by turns."""
    share = token_ms / max(bound_ms, _LEAST_MS)
    if share <= _KEEPS:
        return 1 / math.sqrt(1 - share)
    return _AT_KEEPS + _SLOPE * (share - _KEEPS) if share <= _BREAKS else 1.0


def bound_of(counts: float, token_ms: float) -> float:
    """The bound near which a millisecond counts so much while a token takes `token_ms`, and that is not lost;
    infinite where it counts 1."""
    if counts <= 1 or token_ms <= 0:
        return math.inf
    share = 1 - 1 / counts**2 if counts <= _AT_KEEPS else _KEEPS + (counts - _AT_KEEPS) / _SLOPE
    return token_ms / share
