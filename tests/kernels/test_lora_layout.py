"""Where adapters lie in the pool."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from caraserve_kernels import lora_layout
from caraserve_kernels.lora_layout import (
    NO_BIAS,
    PIECE_ALIGN_ELEMENTS,
    AdapterLayout,
    FusedGroup,
    ModuleKey,
    empty_table,
)

GROUPS = (
    FusedGroup(("q", "k", "v"), 40, (72, 24, 24)),
    FusedGroup(("o",), 72, (40,)),
    FusedGroup(("gate", "up"), 40, (50, 50)),
)
MODULES = [module for group in GROUPS for module in group.modules]
WIDTHS = {
    module: (group.in_width, width)
    for group in GROUPS
    for module, width in zip(group.modules, group.out_widths, strict=True)
}
NUM_LAYERS = 3

ranks = st.dictionaries(
    st.tuples(st.integers(0, NUM_LAYERS - 1), st.sampled_from(MODULES)), st.integers(1, 70), max_size=12
)


def module_fields(entry: NDArray[np.int64], index: int) -> list[int]:
    """(rank, row, B offset, bias offset) of a group's module."""
    first = lora_layout.FIRST_MODULE + index * lora_layout.MODULE_FIELDS
    return list(map(int, entry[first : first + lora_layout.MODULE_FIELDS]))


class TestLayout:
    @given(ranks, st.booleans(), st.sampled_from([None, 70, 96]))
    def test_pieces_are_apart_and_aligned(
        self, lora_ranks: dict[ModuleKey, int], is_biased: bool, padded_rank: int | None
    ) -> None:
        biased = set(lora_ranks) if is_biased else set()
        layout = AdapterLayout.build(GROUPS, NUM_LAYERS, lora_ranks, biased, padded_rank)
        extents = []
        for (layer, module), piece in layout.pieces.items():
            in_width, out_width = WIDTHS[module]
            assert (piece.in_width, piece.out_width) == (in_width, out_width)
            assert piece.lora_rank == lora_ranks[layer, module]
            assert piece.stored_rank == (padded_rank or piece.lora_rank)
            sizes = [(piece.a_offset, piece.stored_rank * in_width)]
            sizes.append((piece.b_offset, piece.stored_rank * out_width))
            if is_biased:
                sizes.append((piece.bias_offset, out_width))
            assert all(offset % PIECE_ALIGN_ELEMENTS == 0 for offset, _ in sizes[1:])
            first, last = layout.layer_starts[layer : layer + 2]
            assert all(first <= offset <= offset + size <= last for offset, size in sizes)
            extents += sizes
        extents.sort()
        for (offset, size), (following, _) in itertools.pairwise(extents):
            assert offset + size <= following
        assert layout.layer_starts[0] == 0
        assert layout.layer_starts[-1] == layout.num_elements

    @given(ranks, st.sampled_from([None, 70]))
    def test_the_table_says_what_the_pieces_say(
        self, lora_ranks: dict[ModuleKey, int], padded_rank: int | None
    ) -> None:
        biased = {key for key in lora_ranks if key[0] == 1}
        layout = AdapterLayout.build(GROUPS, NUM_LAYERS, lora_ranks, biased, padded_rank)
        base = 64 * 1000
        table = layout.placed(base)
        for layer, (index, group) in itertools.product(range(NUM_LAYERS), enumerate(GROUPS)):
            entry, rows = table[layer, index], 0
            assert entry[lora_layout.A_OFFSET] % PIECE_ALIGN_ELEMENTS == 0
            for place, module in enumerate(group.modules):
                stored_rank, row, b_offset, bias_offset = module_fields(entry, place)
                assert row == rows, "the rows of a group's modules follow each other"
                piece = layout.pieces.get((layer, module))
                assert stored_rank == (piece.stored_rank if piece else 0)
                if piece:
                    a_offset = entry[lora_layout.A_OFFSET] + row * group.in_width
                    assert (a_offset, b_offset) == (base + piece.a_offset, base + piece.b_offset)
                has_bias = (layer, module) in biased
                assert bias_offset == (base + piece.bias_offset if piece and has_bias else NO_BIAS)
                rows += stored_rank
            assert rows <= layout.stacked_rows[index]

    def test_size_follows_the_sum_of_ranks(self) -> None:
        def size(lora_rank: int, padded_rank: int | None = None) -> int:
            lora_ranks = {(layer, module): lora_rank for layer in range(NUM_LAYERS) for module in MODULES}
            return AdapterLayout.build(GROUPS, NUM_LAYERS, lora_ranks, padded_rank=padded_rank).num_elements

        gaps = NUM_LAYERS * (len(GROUPS) + len(MODULES)) * PIECE_ALIGN_ELEMENTS
        for lora_rank in (1, 3, 8, 64):
            weights = NUM_LAYERS * lora_rank * sum(a + b for a, b in WIDTHS.values())
            assert weights <= size(lora_rank) <= weights + gaps
            assert size(lora_rank, padded_rank=64) == size(64)

    def test_stacked_rows_are_the_tallest_layers(self) -> None:
        lora_ranks = {(0, "q"): 3, (0, "v"): 5, (1, "k"): 7, (2, "o"): 2, (1, "up"): 1}
        layout = AdapterLayout.build(GROUPS, NUM_LAYERS, lora_ranks)
        assert layout.stacked_rows.tolist() == [8, 2, 1]
        assert AdapterLayout.build(GROUPS, NUM_LAYERS, lora_ranks, (), 10).stacked_rows.tolist() == [
            20,
            10,
            10,
        ]

    @given(ranks, st.sampled_from([None, 70, 96]))
    def test_the_largest_rank_is_a_modules_own(
        self, lora_ranks: dict[ModuleKey, int], padded_rank: int | None
    ) -> None:
        layout = AdapterLayout.build(GROUPS, NUM_LAYERS, lora_ranks, padded_rank=padded_rank)
        assert layout.largest_rank == max([0, *lora_ranks.values()])

    def test_no_modules_no_elements(self) -> None:
        layout = AdapterLayout.build(GROUPS, NUM_LAYERS, {})
        assert layout.num_elements == 0
        assert np.array_equal(layout.placed(0), empty_table(1, NUM_LAYERS, len(GROUPS))[0]), (
            "as an empty slot"
        )
        assert layout.stacked_rows.tolist() == [0, 0, 0]

    def test_refusals(self) -> None:
        for lora_ranks, message in [
            ({(0, "x"): 1}, "no such module"),
            ({(3, "q"): 1}, "no such module"),
            ({(0, "q"): 0}, "rank 0"),
            ({(0, "q"): 9}, "rank 9"),
        ]:
            with pytest.raises(ValueError, match=message):
                AdapterLayout.build(GROUPS, NUM_LAYERS, lora_ranks, padded_rank=8)
        with pytest.raises(ValueError, match="a bias and no rank"):
            AdapterLayout.build(GROUPS, NUM_LAYERS, {(0, "q"): 1}, {(0, "k")})
        with pytest.raises(ValueError, match="multiple of 64"):
            AdapterLayout.build(GROUPS, NUM_LAYERS, {(0, "q"): 1}).placed(32)
        with pytest.raises(ValueError, match="1 to 3 modules"):
            FusedGroup(("a", "b", "c", "d"), 8, (8, 8, 8, 8))
