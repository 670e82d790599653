"""What a plan will compute, in the numbers from which its time is predicted. No torch: the simulator runs it
too. At 256 sequences it must stay far below a step's host time: no loop of our own, and what running
sequences have in common is not counted again where all of them are in the step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from caraserve_cli.perf.batch_load import NO_RANKS, RankSums
from caraserve_cli.perf.step_load import NO_LOAD, StepLoad
from caraserve_cli.step_plan import ScheduledChunk

_ADAPTER = attrgetter("sequence.request.adapter")
_NUM_TOKENS, _START = map(attrgetter, ("num_tokens", "start"))
_CPU_LAYERS, _LENT_SLOT = map(attrgetter, ("cpu_layers", "lent_slot"))


def chunks_load(chunks: Sequence[ScheduledChunk], ranks: RankSums[int]) -> StepLoad:
    """The load of a step of these chunks, whose distinct adapters have these `ranks`."""
    if not chunks:
        return NO_LOAD
    chunk_tokens = list(map(_NUM_TOKENS, chunks))
    num_decoding = chunk_tokens.count(1)
    prompt_tokens = sum(chunk_tokens) - num_decoding
    # Of chunks of one token only, CPU workers compute those that are lent their adapter.
    is_assisted = any(map(_CPU_LAYERS, chunks)) if prompt_tokens else _has_loans(chunks)
    return StepLoad(num_decoding, prompt_tokens, ranks, sum(map(_START, chunks)), is_assisted)


def _has_loans(chunks: Sequence[ScheduledChunk]) -> bool:
    return list(map(_LENT_SLOT, chunks)).count(None) < len(chunks)


def chunks_ranks(chunks: Sequence[ScheduledChunk], lora_rank_of: Callable[[str], int]) -> RankSums[int]:
    """Of the distinct adapters of these chunks; `lora_rank_of` one of them."""
    names = set(map(_ADAPTER, chunks))
    names.discard(None)
    if not names:
        return NO_RANKS
    lora_ranks = list(map(lora_rank_of, names))
    return RankSums(len(lora_ranks), sum(lora_ranks), max(lora_ranks))
