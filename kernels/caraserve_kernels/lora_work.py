"""What a step's LoRA kernels have to do, as lists that they read on the device. numpy; no torch, no model.

The *work* array is one int32 array, so that one copy brings it to the device: a header, then lists at places
that the header names. Kernels read header and lists from the device, so a captured CUDA graph serves every
set of adapters and ranks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caraserve_kernels.lora_layout import MAX_GROUP_MODULES

# The work array's header. Lists are named by (place in the array, number of tiles).
RANK_LIMIT = 0  # the expand kernel uses at most so many rows of a module
TOKEN_LIST = 1
FIRST_SHRINK_LIST = 3  # two fields a group
NO_RANK_LIMIT = 2**31 - 1

# A shrink tile: some rows of an adapter's stack times some neighbouring tokens.
SHRINK_TILE_FIELDS = 5
TILE_SLOT, TILE_ROW, TILE_NUM_ROWS, TILE_TOKEN, TILE_NUM_TOKENS = range(SHRINK_TILE_FIELDS)
# A token tile: neighbouring tokens of one adapter.
TOKEN_TILE_FIELDS = 3
TOKEN_TILE_SLOT, TOKEN_TILE_TOKEN, TOKEN_TILE_NUM_TOKENS = range(TOKEN_TILE_FIELDS)

_HEADER_ALIGN = 16


class Tiling(NamedTuple):
    """How a step's work is cut.

    Attributes:
        block_tokens: the largest number of tokens of a tile.
        block_rows: the largest number of rows of a shrink tile.
    """

    block_tokens: int
    block_rows: int


class Padding(NamedTuple):
    """The padded form of a step: modules stored with `padded_rank` rows, `largest_rank` of them computed."""

    padded_rank: int
    largest_rank: int


def build_work(
    work: NDArray[np.int32],
    segments: NDArray[np.integer],
    stacked_rows: NDArray[np.integer],
    tiling: Tiling,
    padding: Padding | None = None,
) -> int:
    """Write the lists of one step into `work`; returns how many of its elements are in use, from the first.

    Heavy tiles come first, so that light ones fill the gaps at the end. Row tiles of the same tokens are
    neighbours, so that they find their input in the cache.

    Args:
        work: int32 [capacity]; see `work_capacity`.
        segments: [segments, 3], (adapter slot, first token, number of tokens); one an adapter, or one a
            request where the padded form is to be as Punica's. Tokens in no segment are not touched.
        stacked_rows: [adapter slots, groups], `AdapterLayout.stacked_rows` of the adapters in the slots.
        tiling: how the work is cut.
        padding: how the slots are padded, or None if they are not.

    Raises:
        ValueError: the lists do not fit, `work` then holds nothing of use; or the padding is too small.
    """
    if padding is not None and padding.largest_rank > padding.padded_rank:
        raise ValueError(f"rank {padding.largest_rank} in a pool padded to {padding.padded_rank}")
    num_groups = stacked_rows.shape[1]
    end = header_elements(num_groups)
    tokens, rows = _token_tiles(segments, stacked_rows, tiling.block_tokens)
    work[RANK_LIMIT] = NO_RANK_LIMIT if padding is None else padding.largest_rank
    _room(work, TOKEN_LIST, end, tokens.shape[0], TOKEN_TILE_FIELDS)[:] = tokens
    end += tokens.size
    for group in range(num_groups):
        field = FIRST_SHRINK_LIST + 2 * group
        end = _shrink_tiles(work, field, end, tokens, rows[:, group], tiling.block_rows, padding)
    return end


def header_elements(num_groups: int) -> int:
    """The size of the work array's header, after which the lists may begin."""
    return -(-(FIRST_SHRINK_LIST + 2 * num_groups) // _HEADER_ALIGN) * _HEADER_ALIGN


def work_capacity(
    num_groups: int, max_tokens: int, max_segments: int, max_rows: int, block_tokens: int, block_rows: int
) -> int:
    """Elements that hold any step of `max_tokens` tokens in `max_segments` segments, with stacks of up to
    `max_rows` rows in every group."""
    num_token_tiles = min(max_tokens, max_segments + max_tokens // block_tokens)
    tile_elements = TOKEN_TILE_FIELDS + num_groups * SHRINK_TILE_FIELDS * (
        -(-max_rows // block_rows) + MAX_GROUP_MODULES - 1  # padded modules end in a tile of their own
    )
    return header_elements(num_groups) + num_token_tiles * tile_elements


def _room(
    work: NDArray[np.int32], field: int, first: int, num_tiles: int, num_fields: int
) -> NDArray[np.int32]:
    """Enter a list in the header; returns its place in `work`, [tiles, fields]."""
    end = first + num_tiles * num_fields
    if end > work.shape[0]:
        raise ValueError(f"the step's work lists need over {end} elements; there is room for {work.shape[0]}")
    work[field], work[field + 1] = first, num_tiles
    return work[first:end].reshape(num_tiles, num_fields)


def _token_tiles(
    segments: NDArray[np.integer], stacked_rows: NDArray[np.integer], block_tokens: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Token tiles [tiles, TOKEN_TILE_FIELDS], heaviest first, and the stacked rows, [tiles, groups]."""
    segments = np.asarray(segments, np.int32).reshape(-1, TOKEN_TILE_FIELDS)
    rows = np.asarray(stacked_rows, np.int32).take(segments[:, TOKEN_TILE_SLOT], axis=0)
    order = np.argsort(-rows.sum(axis=1), kind="stable")
    tiles, rows = segments.take(order, axis=0), rows.take(order, axis=0)
    if tiles.shape[0] and tiles[:, TOKEN_TILE_NUM_TOKENS].max() > block_tokens:
        owner, place = _spread(-(-tiles[:, TOKEN_TILE_NUM_TOKENS] // block_tokens))
        tiles, rows = tiles.take(owner, axis=0), rows.take(owner, axis=0)
        tiles[:, TOKEN_TILE_TOKEN] += place * block_tokens
        tiles[:, TOKEN_TILE_NUM_TOKENS] -= place * block_tokens
        np.minimum(tiles[:, TOKEN_TILE_NUM_TOKENS], block_tokens, out=tiles[:, TOKEN_TILE_NUM_TOKENS])
    return tiles, rows


def _shrink_tiles(
    work: NDArray[np.int32],
    field: int,
    first: int,
    tokens: NDArray[np.int32],
    rows: NDArray[np.int32],
    block_rows: int,
    padding: Padding | None,
) -> int:
    """Write the row tiles of each token tile as a list from element `first` on; returns where it ends."""
    per_token_tile = -(-rows // block_rows)
    if padding is not None:
        per_module = -(-padding.largest_rank // block_rows)
        per_token_tile = rows // padding.padded_rank * per_module
    tiles = _room(work, field, first, int(per_token_tile.sum()), SHRINK_TILE_FIELDS)
    if not tiles.size:
        return first
    owner, place = _spread(per_token_tile)
    # One copy of whole tiles, then two columns. Five columns of a fancy index each took `build_work` 323 us
    # instead of 120 us (256 adapters of ranks 8 to 64 on q, k, v, o, tiles of 4 rows, one Zen 4 core).
    template = np.zeros((tokens.shape[0], SHRINK_TILE_FIELDS), np.int32)
    template[:, TILE_SLOT], template[:, TILE_NUM_ROWS] = tokens[:, TOKEN_TILE_SLOT], rows
    template[:, TILE_TOKEN:] = tokens[:, TOKEN_TILE_TOKEN:]
    template.take(owner, axis=0, out=tiles, mode="clip")
    if padding is None:
        row = place * block_rows
        tiles[:, TILE_ROW] = row
        tiles[:, TILE_NUM_ROWS] = np.minimum(tiles[:, TILE_NUM_ROWS] - row, block_rows)
    else:
        row = place % per_module * block_rows
        tiles[:, TILE_ROW] = place // per_module * padding.padded_rank + row
        tiles[:, TILE_NUM_ROWS] = np.minimum(padding.largest_rank - row, block_rows)
    return first + tiles.size


def _spread(counts: NDArray[np.int32]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """For counts [2, 3]: owners 0 0 1 1 1 and places 0 1 0 1 2."""
    owner = np.repeat(np.arange(counts.shape[0]), counts)
    firsts = (np.cumsum(counts) - counts).astype(np.int32)
    place = np.arange(owner.shape[0], dtype=np.int32)
    place -= firsts.take(owner)
    return owner, place
