from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.engine.block_pool import BlockPool, hash_block


def chain(*blocks: list[int]) -> list[bytes]:
    hashes, parent = [], b"root"
    for block in blocks:
        parent = hash_block(parent, block)
        hashes.append(parent)
    return hashes


def test_hash_depends_on_everything_before() -> None:
    first = chain([1, 2], [3, 4])
    assert first[0] == chain([1, 2])[0]
    assert first[1] != chain([9, 2], [3, 4])[1]
    assert hash_block(b"adapter a", [1]) != hash_block(b"adapter b", [1])


def test_released_prefix_is_found_until_its_blocks_are_needed() -> None:
    pool = BlockPool(3)
    hashes = chain([1], [2])
    blocks = pool.allocate(2)
    for block, key in zip(blocks, hashes, strict=True):
        pool.remember(block, key)
    pool.release(blocks)
    assert pool.num_free == 3
    assert pool.find_prefix(hashes) == blocks
    pool.allocate(1)  # the block that never held anything goes first
    assert pool.find_prefix(hashes) == blocks
    pool.allocate(1)  # then the tail of the prefix, not its head
    assert pool.find_prefix(hashes) == blocks[:1]


def test_shared_blocks_are_free_only_when_the_last_holder_leaves() -> None:
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.share(blocks)
    pool.release(blocks)
    assert not pool.is_free(blocks[0])
    pool.release(blocks)
    assert pool.is_free(blocks[0])


def test_equal_prefixes_keep_the_first_block() -> None:
    pool = BlockPool(2)
    first, second = pool.allocate(1), pool.allocate(1)
    (key,) = chain([1])
    pool.remember(first[0], key)
    pool.remember(second[0], key)
    pool.release(second)
    pool.allocate(1)
    assert pool.find_prefix([key]) == first


def test_allocating_more_than_is_free_is_refused() -> None:
    pool = BlockPool(2)
    with pytest.raises(ValueError, match="3 blocks wanted, 2 free"):
        pool.allocate(3)
    assert pool.num_free == 2


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4)), max_size=60))
def test_counts_hold_under_any_use(actions: list[tuple[int, int]]) -> None:
    """Sequences of up to four blocks come, share each other's prefixes, and go, in any order."""
    pool = BlockPool(8)
    tables: list[list[int]] = []
    for prefix, length in actions:
        hashes = chain(*[[prefix, i] for i in range(length)])
        cached = pool.find_prefix(hashes)
        from_free = sum(map(pool.is_free, cached))
        while tables and length - len(cached) + from_free > pool.num_free:
            pool.release(tables.pop(0))
            cached = pool.find_prefix(hashes)
            from_free = sum(map(pool.is_free, cached))
        pool.share(cached)
        table = cached + pool.allocate(length - len(cached))
        for block, key in zip(table, hashes, strict=True):
            pool.remember(block, key)
        tables.append(table)
        pool.check_integrity(tables)
    for table in tables:
        pool.release(table)
    pool.check_integrity([])
    assert pool.num_free == pool.num_blocks
