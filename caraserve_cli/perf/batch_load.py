"""What the time of a step is told from: aggregates of a batch, or of the batches of many replicas.

Data and nothing but data. Which adapters are counted is the caller's to say: every request's, as the paper
does, or each adapter once, as a kernel does that reads its weights once.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]

Number = TypeVar("Number", int, FloatArray)


class RankSums(NamedTuple, Generic[Number]):
    """The adapters of one batch, or of N of them: each attribute is a number, or has shape [N].

    Attributes:
        num_adapters: |S|.
        lora_rank_sum: of these adapters.
        lora_rank_max: of these adapters; 0 without any.
    """

    num_adapters: Number
    lora_rank_sum: Number
    lora_rank_max: Number


NO_RANKS = RankSums(0, 0, 0)


class BatchLoad(NamedTuple):
    """One batch that decodes.

    Attributes:
        num_requests: with adapters and without.
        ranks: of its adapters.
        kv_tokens: whose keys and values a decoding step reads.
    """

    num_requests: int
    ranks: RankSums[int] = NO_RANKS
    kv_tokens: float = 0.0


class BatchLoads(NamedTuple):
    """The batches of N replicas; each attribute has shape [N] and means what it does in `BatchLoad`."""

    num_requests: IntArray
    ranks: RankSums[FloatArray]
    kv_tokens: FloatArray
