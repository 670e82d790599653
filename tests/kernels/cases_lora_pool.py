"""The pooled LoRA kernels in Triton's interpreter against the float32 reference; run by test_lora_pool.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from caraserve_kernels.lora_layout import AdapterLayout, FusedGroup, ModuleKey, empty_table
from caraserve_kernels.lora_linear import LoraPart, add_lora_reference
from caraserve_kernels.lora_pool import (
    ExpandConfig,
    LoraConfig,
    PooledLora,
    ShrinkConfig,
    add_pooled_reference,
    expand,
    shrink,
)
from caraserve_kernels.lora_work import Padding, build_work, work_capacity
from tests.kernels.pool_blobs import write_blob

# Unequal widths, as under grouped-query attention; none a multiple of a block.
GROUPS = (
    FusedGroup(("q", "k", "v"), 40, (72, 24, 24)),
    FusedGroup(("o",), 72, (40,)),
    FusedGroup(("gate", "up"), 40, (50, 50)),
    FusedGroup(("down",), 50, (40,)),
)
NUM_LAYERS = 2
MODULES = [module for group in GROUPS for module in group.modules]
MAX_TOKENS = 48
MAX_RANK = 68
# Largest error accepted, relative to the largest output. float16: 11 bits of mantissa, h rounded to it where
# several tokens go through tensor cores, y rounded once.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3}

ONE_TOKEN = LoraConfig(1, ShrinkConfig(16, 32, 1, 4, 2, 1), ExpandConfig(64, 16, 4, 2, 1))
ONE_TOKEN_SPLIT = LoraConfig(1, ShrinkConfig(32, 16, 3, 4, 1, 2), ExpandConfig(128, 8, 4, 1, 2))
SIXTEEN_TOKENS = LoraConfig(16, ShrinkConfig(16, 32, 1, 4, 2, 2), ExpandConfig(32, 16, 4, 2, 2))
SIXTEEN_TOKENS_SPLIT = LoraConfig(16, ShrinkConfig(64, 16, 2, 4, 2, 1), ExpandConfig(64, 32, 4, 2, 3))
THIRTY_TWO_TOKENS = LoraConfig(32, ShrinkConfig(32, 64, 1, 4, 2, 1), ExpandConfig(64, 64, 4, 2, 1))

RANKS: Mapping[str, Mapping[ModuleKey, int]] = {
    "every module, rank 8": {(layer, m): 8 for layer in range(NUM_LAYERS) for m in MODULES},
    "rank 1": {(layer, m): 1 for layer in range(NUM_LAYERS) for m in MODULES},
    "rank 64 on q and v": {(layer, m): 64 for layer in range(NUM_LAYERS) for m in ("q", "v")},
    "another rank in each module": {
        (layer, m): 1 + (5 * i + 7 * layer) % 13 for layer in range(NUM_LAYERS) for i, m in enumerate(MODULES)
    },
    "rank 13 in the last layer only": {(1, "k"): 13, (1, "o"): 3, (1, "up"): 2},
    "nothing": {},
}
Segments = Sequence[tuple[int, int]]  # (adapter slot, number of tokens)
DISTINCT: Segments = [(0, 1), (3, 1), (2, 1), (1, 1), (4, 1), (5, 1)]
SAME: Segments = [(3, 37)]
SKEWED: Segments = [(0, 17), (3, 3), (2, 1), (4, 1)]
CASES: Mapping[str, tuple[LoraConfig, Segments]] = {
    "one token, distinct": (ONE_TOKEN, DISTINCT),
    "one token, same": (ONE_TOKEN, [(3, 3)]),
    "one token, none": (ONE_TOKEN, []),
    "one token in parts, skewed": (ONE_TOKEN_SPLIT, [(2, 1), (0, 3), (4, 1)]),
    "16 tokens, distinct": (SIXTEEN_TOKENS, DISTINCT),
    "16 tokens, same": (SIXTEEN_TOKENS, SAME),
    "16 tokens in parts, skewed": (SIXTEEN_TOKENS_SPLIT, SKEWED),
    "32 tokens, same": (THIRTY_TWO_TOKENS, SAME),
    "32 tokens, skewed": (THIRTY_TWO_TOKENS, SKEWED),
}
# (layer, group): both layers of q, k, v, whose rows differ; one layer of the others.
PLACES = [(0, 0), (1, 0), (1, 1), (0, 2)]


class Weights:
    """Random adapters of the ranks above, in a pool whose every other element is NaN."""

    def __init__(self, dtype: torch.dtype, padded_rank: int | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        self.table = empty_table(len(RANKS), NUM_LAYERS, len(GROUPS))
        self.stacked_rows = np.zeros((len(RANKS), len(GROUPS)), np.int32)
        self.weights: list[dict[ModuleKey, tuple[Tensor, Tensor, Tensor | None]]] = []
        extents = [torch.full((64,), torch.nan)]
        for slot, lora_ranks in enumerate(RANKS.values()):
            biased = {key for i, key in enumerate(lora_ranks) if (i + slot) % 3 == 0}
            layout = AdapterLayout.build(GROUPS, NUM_LAYERS, lora_ranks, biased, padded_rank)
            weights = {
                (layer, module): _random_module(generator, group, module, lora_ranks[layer, module])
                for layer in range(NUM_LAYERS)
                for group in GROUPS
                for module in group.modules
                if (layer, module) in lora_ranks
            }
            self.weights.append(
                {key: (a, b, bias if key in biased else None) for key, (a, b, bias) in weights.items()}
            )
            extent = torch.zeros(layout.num_elements)
            write_blob(extent, layout, self.weights[-1])
            _poison_gaps(extent, layout)
            self.table[slot] = layout.placed(sum(e.numel() for e in extents))
            self.stacked_rows[slot] = layout.stacked_rows
            extents += [extent, torch.full((64,), torch.nan)]
        self.pool = torch.cat(extents).to(dtype)

    def parts(self, slot: int, layer: int, group: FusedGroup) -> list[LoraPart]:
        """The reference's own view of the weights, which knows no layout."""
        parts, column = [], 0
        for module, width in zip(group.modules, group.out_widths, strict=True):
            if (layer, module) in self.weights[slot]:
                a, b, bias = self.weights[slot][layer, module]
                rounded = [None if t is None else t.to(self.pool.dtype) for t in (a, b, bias)]
                assert rounded[0] is not None
                assert rounded[1] is not None
                parts.append(LoraPart(rounded[0], rounded[1], rounded[2], column))
            column += width
        return parts


def _random_module(
    generator: torch.Generator, group: FusedGroup, module: str, lora_rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    width = group.out_widths[group.modules.index(module)]
    a = torch.randn(lora_rank, group.in_width, generator=generator) / group.in_width**0.5
    b = torch.randn(lora_rank, width, generator=generator) / lora_rank**0.5
    return a, b, torch.randn(width, generator=generator)


def _poison_gaps(extent: Tensor, layout: AdapterLayout) -> None:
    used = torch.zeros(extent.shape, dtype=torch.bool)
    for piece in layout.pieces.values():
        used[piece.a_offset :][: piece.stored_rank * piece.in_width] = True
        used[piece.b_offset :][: piece.stored_rank * piece.out_width] = True
        if piece.bias_offset >= 0:
            used[piece.bias_offset :][: piece.out_width] = True
    extent[~used] = torch.nan


def make_lora(
    weights: Weights,
    segments: Segments,
    config: LoraConfig,
    padding: Padding | None = None,
) -> PooledLora:
    """The buffers of a step, with poison wherever nothing should be read."""
    flat, first_token = [], 0
    for slot, num_tokens in segments:
        flat.append((slot, first_token, num_tokens))
        first_token += num_tokens
    capacity = work_capacity(
        len(GROUPS), MAX_TOKENS, len(RANKS), 3 * MAX_RANK, config.block_tokens, config.shrink.block_rows
    )
    work = np.full(capacity, 1 << 20, np.int32)
    build_work(
        work,
        np.array(flat, np.int32).reshape(-1, 3),
        weights.stacked_rows,
        config.tiling,
        padding,
    )
    h = torch.full((3, MAX_TOKENS, 3, MAX_RANK), torch.nan)
    table = torch.from_numpy(weights.table)
    return PooledLora(GROUPS, weights.pool, table, torch.from_numpy(work), h, config, num_sms=3)


def token_adapters(segments: Segments, num_tokens: int) -> list[int]:
    owners = [slot for slot, count in segments for _ in range(count)]
    return owners + [-1] * (num_tokens - len(owners))


def random_tokens(dtype: torch.dtype, num_tokens: int, width: int, seed: int) -> Tensor:
    """Rows of a wider tensor, as the engine's views are."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num_tokens, width + 8, generator=generator).to(dtype)[:, :width]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.float() - expected).abs().max() / expected.abs().max())


@pytest.fixture(scope="module", params=TOLERANCE, ids=str)
def weights(request: pytest.FixtureRequest) -> Weights:
    return Weights(request.param)


@pytest.mark.parametrize(("config", "segments"), CASES.values(), ids=CASES.keys())
def test_matches_the_reference(weights: Weights, config: LoraConfig, segments: Segments) -> None:
    dtype = weights.pool.dtype
    lora = make_lora(weights, segments, config)
    num_used = sum(num_tokens for _, num_tokens in segments)
    num_tokens = num_used + 2  # the last two have no adapter
    owners = token_adapters(segments, num_tokens)
    for layer, index in PLACES:
        group = GROUPS[index]
        x = random_tokens(dtype, num_tokens, group.in_width, seed=10 * layer + index)
        x[num_used:] = torch.nan
        y = random_tokens(dtype, num_tokens, sum(group.out_widths), seed=10 * layer + index + 100)
        y[num_used:] = torch.nan
        adapters = [weights.parts(slot, layer, group) for slot in range(len(RANKS))]
        expected = add_lora_reference(x, y, adapters, owners)[:num_used]
        lora.h.fill_(torch.nan)
        shrink(lora, layer, index, x)
        num_products = sum(part.a.shape[0] for owner in owners[:num_used] for part in adapters[owner])
        num_written = int((~lora.h[: config.shrink.split_k].isnan()).sum())
        assert num_written == num_products * config.shrink.split_k, "h has what this layer's ranks ask for"
        expand(lora, layer, index, y)
        assert bool(y[num_used:].isnan().all()), "tokens without an adapter must not change"
        if num_used:
            assert relative_error(y[:num_used], expected) < TOLERANCE[dtype], (layer, group.modules)


@pytest.mark.parametrize("config", [ONE_TOKEN, SIXTEEN_TOKENS_SPLIT], ids=["one token", "16 tokens"])
@pytest.mark.parametrize("segments", [[(3, 1), (0, 1), (3, 1), (4, 1)], [(0, 1), (2, 1)]], ids=["13", "64"])
def test_the_padded_form_gives_the_same(config: LoraConfig, segments: Segments) -> None:
    dense, padded = Weights(torch.float32), Weights(torch.float32, padded_rank=66)
    largest_rank = max(max(list(RANKS.values())[slot].values()) for slot, _ in segments)
    padding = Padding(66, largest_rank)
    loras = [make_lora(dense, segments, config), make_lora(padded, segments, config, padding)]
    x = random_tokens(torch.float32, len(segments), GROUPS[0].in_width, seed=3)
    before = random_tokens(torch.float32, len(segments), sum(GROUPS[0].out_widths), seed=4)
    results = [before.clone(), before.clone()]
    for lora, y in zip(loras, results, strict=True):
        shrink(lora, 1, 0, x)
        expand(lora, 1, 0, y)
    # The same products: zeros stand between the summands, which may then be added in another order.
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=2e-6)
    assert not torch.equal(results[0], before)


def test_the_rank_limit_is_read_from_the_device() -> None:
    """A captured graph must serve any batch: the same launch, another largest rank."""
    padded = Weights(torch.float32, padded_rank=66)
    lora = make_lora(padded, [(2, 1)], ONE_TOKEN, Padding(66, 64))
    x, before = random_tokens(torch.float32, 1, 40, 1), random_tokens(torch.float32, 1, 120, 2)
    results = []
    for limit in (64, 10):
        lora.work[0] = limit
        results.append(before.clone())
        shrink(lora, 0, 0, x)
        expand(lora, 0, 0, results[-1])
        expected = add_pooled_reference(lora, 0, 0, x, before)
        assert relative_error(results[-1], expected) < TOLERANCE[torch.float32]
    assert relative_error(results[0], results[1]) > 0.01


def test_equal_runs_are_equal() -> None:
    weights = Weights(torch.float32)
    x = random_tokens(torch.float32, 8, 40, 7)
    before = random_tokens(torch.float32, 8, 120, 8)
    results = []
    for num_sms in (1, 5):
        lora = make_lora(weights, [(0, 3), (3, 5)], SIXTEEN_TOKENS_SPLIT)
        lora = dataclasses.replace(lora, num_sms=num_sms)
        results.append(before.clone())
        shrink(lora, 1, 0, x)
        expand(lora, 1, 0, results[-1])
    assert torch.equal(results[0], results[1])


def test_refuses_what_the_kernels_cannot_take() -> None:
    lora = make_lora(Weights(torch.float32), [(0, 1)], ONE_TOKEN)
    with pytest.raises(ValueError, match="room for 1 to 48"):
        shrink(lora, 0, 0, torch.zeros(49, 40))
    for x in (torch.zeros(2, 41), torch.zeros(2, 40, dtype=torch.float16), torch.zeros(40, 2).t()):
        with pytest.raises(ValueError, match="expected 40"):
            shrink(lora, 0, 0, x)
