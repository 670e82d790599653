"""Decoding steps that are all alike: as long as every running sequence gets one token a step and nothing else
happens, many steps can be booked at once. A simulator passes over them in one event.

Knows no queue: whether anybody who waits could be admitted is the scheduler's to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

from caraserve_cli.core import Sequence
from caraserve_cli.engine.block_pool import BlockPool
from caraserve_cli.engine.holdings import Holdings


def num_equal_steps(
    running: SequenceOf[Sequence],
    blocks: BlockPool,
    block_tokens: int,
    most_steps: int,
    blocks_left: int = 0,
) -> int:
    """How many of the next steps decode one token of every running sequence, and preempt nobody.

    Args:
        running: all that run, each with all of its adapter.
        blocks: of the cache.
        block_tokens: of a block.
        most_steps: that are asked about.
        blocks_left: that must be free after all of them.
    """
    num_free = blocks.num_free - blocks_left
    num_steps = most_steps
    for sequence in running:
        if sequence.is_unchecked or sequence.num_tokens - sequence.num_computed_tokens != 1:
            return 0
        if sequence.num_computed_tokens < sequence.num_prompt_tokens:  # the last token of a long prompt
            return 0
        num_outputs = sequence.num_tokens - sequence.num_prompt_tokens
        num_steps = min(num_steps, sequence.max_output_tokens - num_outputs)
    if not running or num_steps <= 0:
        return 0
    # Nobody needs more blocks than this; mostly there are as many.
    if len(running) * -(-num_steps // block_tokens) <= num_free:
        return num_steps
    fewest, most = 0, num_steps
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if _num_missing(running, block_tokens, middle) <= num_free:
            fewest = middle
        else:
            most = middle - 1
    return fewest


def book_tokens(running: Iterable[Sequence], holdings: Holdings, num_tokens: int, token_id: int) -> None:
    """Give every running sequence the blocks for its next `num_tokens` tokens, and those tokens, all of them
    `token_id`."""
    for sequence in running:
        holdings.give_blocks(sequence, num_tokens)
        sequence.num_computed_tokens += num_tokens
        sequence.token_ids += (token_id,) * num_tokens
        holdings.remember(sequence)


def _num_missing(running: Iterable[Sequence], block_tokens: int, num_tokens: int) -> int:
    """Blocks that the next `num_tokens` tokens of all of them need."""
    return sum(
        -(-(sequence.num_computed_tokens + num_tokens) // block_tokens) - len(sequence.block_table)
        for sequence in running
    )
