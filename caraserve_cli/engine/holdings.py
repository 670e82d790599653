"""What sequences hold of the device: blocks of the KV cache, and a pin on their adapter. Decides nothing."""

from __future__ import annotations

from caraserve_cli.core import Sequence
from caraserve_cli.engine.block_pool import BlockPool
from caraserve_cli.engine.prefix_hashes import remember_blocks, reusable_hashes
from caraserve_cli.engine.residency import AdapterResidency


class Holdings:
    """Gives to sequences and takes back.

    Args:
        blocks: of the KV cache.
        residency: of adapters.
        kv_block_tokens: of a block.
    """

    def __init__(self, blocks: BlockPool, residency: AdapterResidency, kv_block_tokens: int) -> None:
        self._blocks, self._residency, self._block_tokens = blocks, residency, kv_block_tokens

    def num_missing_blocks(self, sequence: Sequence, num_tokens: int) -> int:
        """What a sequence does not have yet for its next `num_tokens` tokens."""
        return self._num_blocks(sequence.num_computed_tokens + num_tokens) - len(sequence.block_table)

    def give_blocks(self, sequence: Sequence, num_tokens: int) -> None:
        """Those that are missing for its next tokens; there must be as many free ones."""
        sequence.block_table += self._blocks.allocate(self.num_missing_blocks(sequence, num_tokens))

    def give_prefix(self, sequence: Sequence) -> bool:
        """Have a sequence that holds no block begin behind what the cache has of its tokens; False if the
        cache has no room for the rest of them."""
        cached_blocks = self._blocks.find_prefix(reusable_hashes(sequence, self._block_tokens))
        num_from_free = sum(map(self._blocks.is_free, cached_blocks))
        num_total = self._num_blocks(len(sequence.token_ids))
        if num_total - len(cached_blocks) + num_from_free > self._blocks.num_free:
            return False
        self._blocks.share(cached_blocks)
        sequence.block_table = list(cached_blocks)
        sequence.num_findable_blocks = len(cached_blocks)
        sequence.num_computed_tokens = len(cached_blocks) * self._block_tokens
        return True

    def hash_prefix(self, sequence: Sequence) -> int:
        """Have the keys of its blocks ready for when it is planned; how many were not."""
        num_known = len(sequence.block_hashes)
        reusable_hashes(sequence, self._block_tokens)
        return len(sequence.block_hashes) - num_known

    def num_cached_tokens(self, sequence: Sequence) -> int:
        """Of a sequence that holds no block: those that it would begin behind."""
        return (
            len(self._blocks.find_prefix(reusable_hashes(sequence, self._block_tokens))) * self._block_tokens
        )

    def remember(self, sequence: Sequence) -> None:
        """Later prompts may find what it has computed."""
        remember_blocks(self._blocks, sequence, self._block_tokens)

    def take_back(self, sequence: Sequence) -> None:
        """All that it holds."""
        self._blocks.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_findable_blocks = 0
        if sequence.adapter_slot is not None:
            assert sequence.request.adapter is not None
            self._residency.release(sequence.request.adapter)
        sequence.adapter_slot = None

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_tokens)
