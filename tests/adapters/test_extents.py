"""Extents against a buffer that is really written to: nothing overlaps, nothing is lost on the way down."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caraserve_cli.adapters.extents import ALIGNMENT_BYTES, ExtentMap, ExtentMove, aligned_bytes

UNIT = ALIGNMENT_BYTES


def full_map(*sizes: int) -> tuple[ExtentMap, list[int]]:
    """A map filled to the last byte with extents of `sizes` units, and their offsets."""
    extents = ExtentMap(sum(sizes) * UNIT)
    offsets = [extents.allocate(size * UNIT) for size in sizes]
    assert extents.free_bytes == 0
    return extents, [offset for offset in offsets if offset is not None]


@pytest.mark.parametrize(("num_bytes", "aligned"), [(1, 256), (256, 256), (257, 512), (0, 0)])
def test_sizes_are_rounded_up(num_bytes: int, aligned: int) -> None:
    assert aligned_bytes(num_bytes) == aligned
    assert ExtentMap(num_bytes).capacity_bytes == aligned


def test_what_is_not_larger_than_the_buffer_fits_it() -> None:
    extents = ExtentMap(1000)
    assert extents.allocate(1000) == 0
    assert (extents.used_bytes, extents.free_bytes, extents.largest_hole_bytes) == (1024, 0, 0)
    assert extents.allocate(1) is None


def test_the_smallest_hole_that_fits_is_taken() -> None:
    extents, offsets = full_map(4, 1, 2, 1, 3)
    for index in (0, 2, 4):
        extents.free(offsets[index])
    assert extents.allocate(2 * UNIT) == offsets[2]
    assert extents.allocate(2 * UNIT) == offsets[4]
    assert extents.allocate(5 * UNIT) is None
    assert extents.free_bytes == 5 * UNIT
    extents.check_integrity()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_free_neighbours_are_one_hole(order: tuple[int, ...]) -> None:
    extents, offsets = full_map(1, 2, 3)
    for index in order:
        extents.free(offsets[index])
        extents.check_integrity()
    assert extents.largest_hole_bytes == extents.free_bytes == 6 * UNIT


def test_compaction_moves_as_few_bytes_as_make_the_hole() -> None:
    extents, offsets = full_map(1, 2, 1, 9, 1, 3, 2, 1)  # holes of 1, 1, 1 and 2 units
    for index in (0, 2, 4, 6):
        extents.free(offsets[index])
    assert extents.compact(3 * UNIT) == (ExtentMove(14 * UNIT, 13 * UNIT, 3 * UNIT),)
    extents.check_integrity()
    assert extents.allocate(3 * UNIT) == 16 * UNIT
    assert extents.compact(2 * UNIT) == (ExtentMove(UNIT, 0, 2 * UNIT),)
    assert extents.allocate(2 * UNIT) == 2 * UNIT
    assert extents.free_bytes == 0


def test_compaction_moves_each_extent_of_a_run_once_from_the_lowest_up() -> None:
    extents, offsets = full_map(2, 1, 3, 1, 2, 1, 4)
    for index in (1, 3, 5):
        extents.free(offsets[index])
    assert extents.compact(3 * UNIT) == (
        ExtentMove(3 * UNIT, 2 * UNIT, 3 * UNIT),
        ExtentMove(7 * UNIT, 5 * UNIT, 2 * UNIT),
    )
    extents.check_integrity()
    assert extents.compact(3 * UNIT) == (), "the hole is there already"
    with pytest.raises(ValueError, match="768 free"):
        extents.compact(3 * UNIT + 1)
    assert extents.allocate(3 * UNIT) == 7 * UNIT


def test_misuse_is_an_error() -> None:
    extents = ExtentMap(UNIT)
    with pytest.raises(ValueError, match="0 bytes"):
        extents.allocate(0)
    with pytest.raises(KeyError):
        extents.free(0)


def execute(buffer: bytearray, move: ExtentMove, chunk_bytes: int) -> None:
    """Copy as an executor on a GPU has to: through a staging buffer, piece by piece from the lowest up."""
    start, to, size = move
    assert to < start
    for done in range(0, size, chunk_bytes):
        staged = bytes(buffer[start + done : start + min(done + chunk_bytes, size)])
        buffer[to + done : to + done + len(staged)] = staged


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 40 * UNIT),
    st.lists(st.tuples(st.sampled_from("aaaafffcc"), st.integers(1, 12 * UNIT)), max_size=60),
    st.randoms(use_true_random=False),
    st.sampled_from([97, UNIT, 10**6]),
)
def test_content_survives(
    capacity_bytes: int, actions: list[tuple[str, int]], rng: random.Random, chunk_bytes: int
) -> None:
    extents = ExtentMap(capacity_bytes)
    buffer = bytearray(extents.capacity_bytes)
    contents: dict[int, bytes] = {}
    for action, num_bytes in actions:
        if action == "a":
            largest = extents.largest_hole_bytes
            offset = extents.allocate(num_bytes)
            assert (offset is not None) == (aligned_bytes(num_bytes) <= largest)
            if offset is not None:
                contents[offset] = rng.randbytes(num_bytes)
                buffer[offset : offset + num_bytes] = contents[offset]
        elif action == "f" and contents:
            offset = rng.choice(list(contents))
            extents.free(offset)
            del contents[offset]
        elif action == "c":
            wanted_bytes = min(num_bytes, extents.free_bytes)
            for move in extents.compact(wanted_bytes) if wanted_bytes else ():
                execute(buffer, move, chunk_bytes)
                contents[move.to_offset_bytes] = contents.pop(move.from_offset_bytes)
            assert extents.largest_hole_bytes >= wanted_bytes
        extents.check_integrity()
        assert extents.used_bytes == sum(aligned_bytes(len(content)) for content in contents.values())
        assert len(buffer) == extents.capacity_bytes
        for offset, content in contents.items():
            assert buffer[offset : offset + len(content)] == content
