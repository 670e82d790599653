"""The work lists of a step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from caraserve_kernels import lora_work
from caraserve_kernels.lora_work import Padding, Tiling, build_work, work_capacity


def token_tiles(work: NDArray[np.int32]) -> NDArray[np.int32]:
    first, count = work[lora_work.TOKEN_LIST :][:2]
    return work[first:][: count * lora_work.TOKEN_TILE_FIELDS].reshape(-1, lora_work.TOKEN_TILE_FIELDS)


def shrink_tiles(work: NDArray[np.int32], group: int) -> NDArray[np.int32]:
    first, count = work[lora_work.FIRST_SHRINK_LIST + 2 * group :][:2]
    return work[first:][: count * lora_work.SHRINK_TILE_FIELDS].reshape(-1, lora_work.SHRINK_TILE_FIELDS)


@st.composite
def steps(draw: st.DrawFn) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Segments, and the stacked rows [slots, 2 groups] as multiples of one (padded rank, or 1)."""
    rows = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
    segments, first_token = [], 0
    for slot in draw(st.lists(st.integers(0, len(rows) - 1), max_size=8)):
        num_tokens = draw(st.integers(1, 40))
        segments.append((slot, first_token, num_tokens))
        first_token += num_tokens
    return np.array(segments, np.int32).reshape(-1, 3), np.array(rows, np.int32)


blocks = st.sampled_from([1, 3, 4, 16])


class TestWork:
    @given(steps(), blocks, blocks, st.none() | st.integers(1, 13))
    def test_every_token_and_row_once(
        self,
        step: tuple[NDArray[np.int32], NDArray[np.int32]],
        block_tokens: int,
        block_rows: int,
        largest_rank: int | None,
    ) -> None:
        segments, rows = step
        padding = None if largest_rank is None else Padding(13, largest_rank)
        rows = rows % 4 * 13 if padding else rows * 5
        num_tokens = int(segments[:, 2].sum())
        capacity = work_capacity(2, num_tokens, len(segments), int(rows.max()), block_tokens, block_rows)
        work = np.full(capacity, -7, np.int32)
        tiling = Tiling(block_tokens, block_rows)
        used = build_work(work, segments, rows, tiling, padding)
        assert used <= capacity
        assert (work[used:] == -7).all()
        owners = np.repeat(segments[:, 0], segments[:, 2])
        seen = np.zeros(num_tokens, int)
        for slot, first, count in token_tiles(work):
            assert 1 <= count <= block_tokens
            assert (owners[first : first + count] == slot).all()
            seen[first : first + count] += 1
        assert (seen == 1).all()
        for group in range(2):
            self.check_group(
                shrink_tiles(work, group), owners, rows[:, group], block_tokens, block_rows, padding
            )

    def check_group(
        self,
        tiles: NDArray[np.int32],
        owners: NDArray[np.int32],
        rows: NDArray[np.int32],
        block_tokens: int,
        block_rows: int,
        padding: Padding | None,
    ) -> None:
        seen = np.zeros((len(owners), int(rows.max()) + 1), int)
        for slot, first_row, num_rows, first, count in tiles:
            assert 1 <= num_rows <= block_rows
            assert 1 <= count <= block_tokens
            assert (owners[first : first + count] == slot).all()
            seen[first : first + count, first_row : first_row + num_rows] += 1
        for token, slot in enumerate(owners):
            place = np.arange(seen.shape[1])
            wanted = place < rows[slot]
            if padding:
                wanted &= place % padding.padded_rank < padding.largest_rank
            assert np.array_equal(seen[token], wanted.astype(int))

    def test_heavy_tiles_come_first(self) -> None:
        rows = np.array([[3, 1], [64, 0], [8, 8]])
        work = np.zeros(1000, np.int32)
        build_work(work, np.array([(0, 0, 2), (1, 2, 1), (2, 3, 1)]), rows, Tiling(1, 16))
        assert token_tiles(work)[:, 0].tolist() == [1, 2, 0, 0]
        assert shrink_tiles(work, 0)[:, 0].tolist() == [1, 1, 1, 1, 2, 0, 0]

    def test_the_rank_limit(self) -> None:
        work = np.zeros(1000, np.int32)
        segments, rows = np.array([(0, 0, 1)]), np.array([[16]])
        build_work(work, segments, rows, Tiling(1, 4))
        assert work[lora_work.RANK_LIMIT] == lora_work.NO_RANK_LIMIT
        build_work(work, segments, rows, Tiling(1, 4), Padding(16, 3))
        assert work[lora_work.RANK_LIMIT] == 3
        with pytest.raises(ValueError, match="padded to 16"):
            build_work(work, segments, rows, Tiling(1, 4), Padding(16, 17))

    def test_a_step_that_does_not_fit(self) -> None:
        segments, rows = np.array([(0, 0, 9)]), np.array([[64]])
        fits = build_work(np.zeros(1000, np.int32), segments, rows, Tiling(1, 4))
        assert build_work(np.zeros(fits, np.int32), segments, rows, Tiling(1, 4)) == fits
        with pytest.raises(ValueError, match=f"room for {fits - 1}"):
            build_work(np.zeros(fits - 1, np.int32), segments, rows, Tiling(1, 4))

    def test_the_callers_arrays_stay_as_they_are(self) -> None:
        segments, rows = np.array([(0, 0, 9)], np.int32), np.array([[64]], np.int32)
        build_work(np.zeros(1000, np.int32), segments, rows, Tiling(4, 4))
        assert segments.tolist() == [[0, 0, 9]]
        assert rows.tolist() == [[64]]
