"""What a step is known to compute before it is computed: all that its time is predicted from.

Data and nothing but data. Each distinct adapter counts once, for a kernel reads its weights once.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from caraserve_cli.perf.batch_load import NO_RANKS, BatchLoad, RankSums


class StepKind(StrEnum):
    """Steps whose times are corrected, and whose errors are told, apart."""

    DECODE = "decode"  # no chunk of more than one token
    PREFILL = "prefill"  # no other chunks
    MIXED = "mixed"


class StepLoad(NamedTuple):
    """One step of one replica.

    Attributes:
        num_decoding: chunks of one token.
        prompt_tokens: of all longer chunks.
        ranks: of the distinct adapters in the step.
        kv_tokens: in the cache before the step, of all its sequences.
        is_assisted: whether CPU workers compute a part of it.
    """

    num_decoding: int
    prompt_tokens: int = 0
    ranks: RankSums[int] = NO_RANKS
    kv_tokens: int = 0
    is_assisted: bool = False

    @property
    def kind(self) -> StepKind:
        if not self.prompt_tokens:
            return StepKind.DECODE
        return StepKind.MIXED if self.num_decoding else StepKind.PREFILL

    @property
    def decoding(self) -> BatchLoad:
        """The step as one that decodes only."""
        return BatchLoad(self.num_decoding, self.ranks, self.kv_tokens)


NO_LOAD = StepLoad(0)
