"""The prefix cache's keys of one sequence: which of its blocks a later prompt may find, and by what.

Blocks are hashed once, when they are first asked for, and only where the sequence takes part at all.
"""

from __future__ import annotations

from caraserve_cli.core import Sequence
from caraserve_cli.engine.block_pool import BlockPool, hash_block


def reusable_hashes(sequence: Sequence, block_tokens: int) -> list[bytes]:
    """Hashes of the full blocks before the last token, which must be computed to yield the next."""
    if sequence.prefix_root is None:
        return []
    num_reusable = (len(sequence.token_ids) - 1) // block_tokens
    _hash_blocks(sequence, num_reusable, block_tokens)
    return sequence.block_hashes[:num_reusable]


def remember_blocks(blocks: BlockPool, sequence: Sequence, block_tokens: int) -> None:
    """Make full blocks findable by later prompts, as far as their tokens are known."""
    if sequence.prefix_root is None:
        return
    num_known = min(sequence.num_computed_tokens, len(sequence.token_ids))
    num_full = num_known // block_tokens
    _hash_blocks(sequence, num_full, block_tokens)
    for index in range(sequence.num_findable_blocks, num_full):
        blocks.remember(sequence.block_table[index], sequence.block_hashes[index])
    sequence.num_findable_blocks = max(sequence.num_findable_blocks, num_full)


def _hash_blocks(sequence: Sequence, num_blocks: int, block_tokens: int) -> None:
    hashes = sequence.block_hashes
    assert sequence.prefix_root is not None
    while len(hashes) < num_blocks:
        parent = hashes[-1] if hashes else sequence.prefix_root
        first = len(hashes) * block_tokens
        hashes.append(hash_block(parent, sequence.token_ids[first : first + block_tokens]))
