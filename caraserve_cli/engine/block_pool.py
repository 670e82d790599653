"""Blocks of the KV cache: who holds which, and which hold a prefix worth keeping.

Knows numbers of blocks and hashes of tokens, not tensors: the simulator runs it too. A block with no
holder keeps its content, and can be found again by its hash, until the block is needed for something else
(least recently used first).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

HASH_BYTES = 16


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Key of a full block: a chain over everything before it, so that equal keys mean equal prefixes."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=HASH_BYTES).digest()


class BlockPool:
    """Reference-counted blocks `0 … num_blocks - 1` with a prefix cache over the unheld ones."""

    def __init__(self, num_blocks: int) -> None:
        self._num_holders = [0] * num_blocks
        # Blocks without a holder, least recently used first.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}

    @property
    def num_blocks(self) -> int:
        return len(self._num_holders)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free

    def is_free(self, block: int) -> bool:
        return self._num_holders[block] == 0

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks nobody holds; what they cached is forgotten.

        Raises:
            ValueError: fewer than `num_blocks` are free (callers ask `num_free` first).
        """
        if num_blocks > self.num_free:
            raise ValueError(f"{num_blocks} blocks wanted, {self.num_free} free")
        blocks = [self._free.popitem(last=False)[0] for _ in range(num_blocks)]
        for block in blocks:
            self._num_holders[block] = 1
            self._forget(block)
        return blocks

    def find_prefix(self, block_hashes: Iterable[bytes]) -> list[int]:
        """The longest run of cached blocks that starts `block_hashes`. Takes nothing."""
        found: list[int] = []
        for block_hash in block_hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            found.append(block)
        return found

    def share(self, blocks: Iterable[int]) -> None:
        """Become one more holder of each of `blocks`."""
        for block in blocks:
            if self._num_holders[block] == 0:
                del self._free[block]
            self._num_holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Stop holding `blocks`; the tail of a prefix is given away before its head."""
        for block in reversed(blocks):
            self._num_holders[block] -= 1
            if self._num_holders[block] == 0:
                self._free[block] = None
                if self._hash_of[block] is None:
                    self._free.move_to_end(block, last=False)

    def remember(self, block: int, block_hash: bytes) -> None:
        """Make a computed, full block findable. Of equal prefixes the first one stays."""
        if self._hash_of[block] is None and block_hash not in self._block_of:
            self._hash_of[block] = block_hash
            self._block_of[block_hash] = block

    def _forget(self, block: int) -> None:
        block_hash = self._hash_of[block]
        if block_hash is not None:
            del self._block_of[block_hash]
            self._hash_of[block] = None

    def check_integrity(self, block_tables: Iterable[Sequence[int]]) -> None:
        """Compare the counts with the tables of all sequences; for tests, after every step.

        Raises:
            AssertionError: a block is lost, doubly free, or counted wrong.
        """
        expected = [0] * self.num_blocks
        for block_table in block_tables:
            for block in block_table:
                expected[block] += 1
        assert expected == self._num_holders, "holders do not match the block tables"
        unheld = {block for block, count in enumerate(expected) if count == 0}
        assert unheld == set(self._free), "free blocks are not the unheld ones"
        assert all(self._hash_of[block] == key for key, block in self._block_of.items())
        assert sum(key is not None for key in self._hash_of) == len(self._block_of)
