"""What a plan will compute, in the numbers from which its time is predicted. No torch: the simulator runs it
too. At 256 sequences it must stay far below a step's host time: no loop of our own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter

from caraserve_cli.perf.batch_load import NO_RANKS, RankSums
from caraserve_cli.perf.step_load import StepLoad
from caraserve_cli.step_plan import ScheduledChunk

_ADAPTER = attrgetter("sequence.request.adapter")
_NUM_TOKENS, _START, _CPU_LAYERS = map(attrgetter, ("num_tokens", "start", "cpu_layers"))


def chunks_load(chunks: Sequence[ScheduledChunk], lora_rank_of: Callable[[str], int]) -> StepLoad:
    """The load of a step of these chunks, of which there is one at least.

    Args:
        chunks: not computed yet.
        lora_rank_of: the largest rank of an adapter.
    """
    names = set(map(_ADAPTER, chunks))
    names.discard(None)
    ranks = NO_RANKS
    if names:
        lora_ranks = list(map(lora_rank_of, names))
        ranks = RankSums(len(lora_ranks), sum(lora_ranks), max(lora_ranks))
    chunk_tokens = list(map(_NUM_TOKENS, chunks))
    num_decoding = chunk_tokens.count(1)
    prompt_tokens = sum(chunk_tokens) - num_decoding
    is_assisted = prompt_tokens > 0 and any(map(_CPU_LAYERS, chunks))
    return StepLoad(num_decoding, prompt_tokens, ranks, sum(map(_START, chunks)), is_assisted)
