"""Who of equal replicas: decided by a hash of names, and so by no order of a list.

Rendezvous hashing (Thaler and Ravishankar 1996): each replica draws a number from its own name and what is
to be decided, and the smallest wins. A replica more or less changes no decision among the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from caraserve_cli.perf.batch_load import IntArray

KeyArray = npt.NDArray[np.uint64]

_KEY_BYTES = 8
# The finaliser of SplitMix64 (Steele et al. 2014): every bit of the input changes half of the output's.
_MIX_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_LAST_SHIFT = np.uint64(31)


def replica_keys(names: Sequence[str]) -> KeyArray:
    """What `drawn_by` needs of each replica, shape [number of names]."""
    return np.array([_hash(name) for name in names], dtype=np.uint64)


def drawn_by(text: str, candidates: IntArray, keys: KeyArray) -> int:
    """The candidate that `text` draws: any one of them with the same probability, the same one every time.

    Args:
        text: what is to be decided, such as a request's id.
        candidates: indices of replicas, at least one.
        keys: of all replicas.
    """
    if len(candidates) == 1:
        return int(candidates[0])
    mixed = keys[candidates] ^ np.uint64(_hash(text))
    for shift, factor in _MIX_STEPS:
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> _LAST_SHIFT
    return int(candidates[mixed.argmin()])


def with_fewest(num_requests: IntArray, candidates: IntArray) -> IntArray:
    """Those of the candidates with the fewest requests.

    Args:
        num_requests: of each replica.
        candidates: indices of replicas, at least one.
    """
    of_candidates = num_requests[candidates]
    fewest: IntArray = candidates[of_candidates == of_candidates.min()]
    return fewest


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=_KEY_BYTES).digest(), "little")
