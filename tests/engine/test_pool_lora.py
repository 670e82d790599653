"""A step's LoRA in both forms, on CPU tensors: what its lists cover, and what comes out of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from caraserve_cli.adapters.copy_lane import open_lane
from caraserve_cli.adapters.extents import aligned_bytes
from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.adapters.packing import MAX_LORA_RANK, LoraForm, Packer, PaddedForm, UnpaddedForm
from caraserve_cli.adapters.transfer import Transfer
from caraserve_cli.adapters.weights import AdapterWeights, LoraPair
from caraserve_cli.core import FUSED_MODULES, LORA_MODULES, BaseShape
from caraserve_cli.engine.pool_lora import PoolLora
from caraserve_kernels import lora_work
from caraserve_kernels.lora_linear import LoraPart, add_lora_reference

SHAPE = BaseShape(
    num_layers=2,
    hidden_size=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=40,
    vocab_size=10,
)
CPU = torch.device("cpu")
MAX_TOKENS, MAX_SEGMENTS = 40, 8
# The last one's modules have ranks of their own, below and above those of the others.
RANKS = (1, 3, 17, 100, 255, None)
FORMS: tuple[LoraForm, ...] = (UnpaddedForm(), PaddedForm(255), PaddedForm(MAX_LORA_RANK))


def make_weights(adapter_slot: int, lora_rank: int | None) -> AdapterWeights:
    """Without a rank: another one in every module and layer, and modules that are left out."""
    generator = torch.Generator().manual_seed(adapter_slot)
    pairs = {}
    for layer in range(SHAPE.num_layers):
        for index, module in enumerate(LORA_MODULES):
            own_rank = lora_rank or 23 * index + 5 * layer
            if own_rank:
                in_width, out_width = SHAPE.module_shape(module)
                a = torch.randn(own_rank, in_width, generator=generator) / in_width**0.5
                b_rows = torch.randn(own_rank, out_width, generator=generator) / own_rank**0.5
                bias = torch.randn(out_width, generator=generator) if index % 2 else None
                pairs[layer, module] = LoraPair(a, b_rows, bias)
    return AdapterWeights(str(adapter_slot), pairs)


WEIGHTS = [make_weights(adapter_slot, lora_rank) for adapter_slot, lora_rank in enumerate(RANKS)]


def make_pool(form: LoraForm) -> PackedPool:
    """All adapters, slot i at the place of its own, in memory that holds NaN otherwise."""
    blobs = [Packer(SHAPE, form, pinned=False).pack(weights) for weights in WEIGHTS]
    firsts = np.cumsum([0, *(aligned_bytes(blob.num_bytes) for blob in blobs)])
    pool = PackedPool(SHAPE, int(firsts[-1]), len(blobs), torch.float32, CPU)
    pool.weights.fill_(torch.nan)
    for adapter_slot, (blob, first) in enumerate(zip(blobs, firsts, strict=False)):
        pool.load(adapter_slot, blob, int(first))
    pool.start_copies()
    pool.transfers.wait()
    return pool


def make_lora(form: LoraForm, *, decoding: bool) -> tuple[PoolLora, torch.Tensor]:
    capacity = PoolLora.work_capacity(MAX_TOKENS, MAX_SEGMENTS, decoding=decoding)
    work = torch.full((capacity,), -7, dtype=torch.int32)
    return PoolLora(make_pool(form), form, work, MAX_TOKENS, num_sms=1, decoding=decoding), work


def make_segments(slots: list[int], num_tokens: int) -> NDArray[np.int32]:
    """So many tokens each, one after the other."""
    firsts = num_tokens * np.arange(len(slots))
    return np.stack([slots, firsts, np.full(len(slots), num_tokens)], axis=1).astype(np.int32)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(("decoding", "num_tokens"), [(True, 1), (True, 4), (False, 6)])
@pytest.mark.parametrize("slots", [[3, 0, 5, 1], [4, 2], [0], list(range(len(RANKS)))], ids=str)
def test_both_forms_give_the_references_sums(
    form: LoraForm, decoding: bool, num_tokens: int, slots: list[int]
) -> None:
    lora, work = make_lora(form, decoding=decoding)
    segments = make_segments(slots, num_tokens)
    config = lora.choose(segments, len(slots) * num_tokens)
    assert lora.write_work(work.numpy(), segments, config) <= work.shape[0]
    owners = [index for index in range(len(slots)) for _ in range(num_tokens)]
    for layer in range(SHAPE.num_layers):
        for modules in FUSED_MODULES:
            x = torch.randn(len(owners) + 1, SHAPE.module_shape(modules[0])[0])
            y = torch.randn(len(owners) + 1, sum(SHAPE.module_shape(module)[1] for module in modules))
            parts = [parts_of(WEIGHTS[slot], layer, modules) for slot in slots]
            expected = add_lora_reference(x, y, parts, [*owners, -1])
            lora.context(config).add(layer, modules, x, y)
            torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)


def parts_of(weights: AdapterWeights, layer: int, modules: tuple[str, ...]) -> list[LoraPart]:
    parts, column = [], 0
    for module in modules:
        if pair := weights.pairs.get((layer, module)):
            parts.append(LoraPart(pair.a, pair.b_rows, pair.bias, column))
        column += SHAPE.module_shape(module)[1]
    return parts


@pytest.mark.parametrize("slots", [[0], [1, 0], [5, 2], [3, 0, 4]], ids=str)
def test_padded_all_adapters_of_a_step_cost_what_its_largest_does(slots: list[int]) -> None:
    """And not what the largest of the pool would."""
    lora, work = make_lora(PaddedForm(300), decoding=True)
    segments = make_segments(slots, 1)
    lora.write_work(work.numpy(), segments, lora.choose(segments, len(slots)))
    largest = max(WEIGHTS[slot].lora_rank for slot in slots)
    assert int(work[lora_work.RANK_LIMIT]) == largest
    rows = num_shrink_rows(work, FUSED_MODULES.index(("gate_proj", "up_proj")))
    assert rows == dict.fromkeys(slots, 2 * largest)


def test_unpadded_each_adapter_costs_its_own_rank() -> None:
    lora, work = make_lora(UnpaddedForm(), decoding=True)
    segments = make_segments([3, 0, 4], 1)
    lora.write_work(work.numpy(), segments, lora.choose(segments, 3))
    assert int(work[lora_work.RANK_LIMIT]) == lora_work.NO_RANK_LIMIT
    assert num_shrink_rows(work, FUSED_MODULES.index(("down_proj",))) == {0: 1, 3: 100, 4: 255}


def num_shrink_rows(work: torch.Tensor, group: int) -> dict[int, int]:
    """The rows of each slot that the lists of one group cover."""
    first, count = work[lora_work.FIRST_SHRINK_LIST + 2 * group :][:2].tolist()
    fields = lora_work.SHRINK_TILE_FIELDS
    rows: dict[int, int] = {}
    for tile in work[first:][: count * fields].view(-1, fields).tolist():
        slot = tile[lora_work.TILE_SLOT]
        rows[slot] = rows.get(slot, 0) + tile[lora_work.TILE_NUM_ROWS]
    return rows


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_slot_without_an_adapter_is_no_work(form: LoraForm) -> None:
    """As the runner's warm-up has it."""
    lora, work = make_lora(form, decoding=False)
    for adapter_slot in range(len(RANKS)):
        lora._pool.evict(adapter_slot)
    segments = make_segments([0], 3)
    lora.write_work(work.numpy(), segments, lora.choose(segments, 3))
    assert all(num_shrink_rows(work, group) == {} for group in range(len(FUSED_MODULES)))


@pytest.mark.parametrize("decoding", [True, False])
def test_the_lists_of_the_widest_step_fit(decoding: bool) -> None:
    """Every segment as tall as the kernels have room for, with every split of its tokens."""
    form = PaddedForm(MAX_LORA_RANK)
    pairs = {
        (0, module): LoraPair(
            torch.zeros(MAX_LORA_RANK, SHAPE.module_shape(module)[0]),
            torch.zeros(MAX_LORA_RANK, SHAPE.module_shape(module)[1]),
        )
        for module in LORA_MODULES
    }
    blob = Packer(SHAPE, form, pinned=False).pack(AdapterWeights("widest", pairs))
    pool = PackedPool(SHAPE, aligned_bytes(blob.num_bytes), MAX_SEGMENTS, torch.float32, CPU)
    for adapter_slot in range(MAX_SEGMENTS):
        pool.load(adapter_slot, blob, 0)
    work = torch.zeros(PoolLora.work_capacity(MAX_TOKENS, MAX_SEGMENTS, decoding=decoding), dtype=torch.int32)
    lora = PoolLora(pool, form, work, MAX_TOKENS, num_sms=1, decoding=decoding)
    segments = make_segments(list(range(MAX_SEGMENTS)), MAX_TOKENS // MAX_SEGMENTS)
    for config in {*lora.ways(1), *lora.ways(MAX_TOKENS)}:
        assert lora.write_work(work.numpy(), segments, config) <= work.shape[0]


@pytest.mark.parametrize(("decoding", "most_tokens"), [(True, 64), (False, 2048)])
@pytest.mark.parametrize(("dtype", "is_one"), [(torch.float32, True), (torch.bfloat16, False)], ids=str)
def test_in_float32_a_token_is_computed_the_same_in_small_and_large_batches(
    dtype: torch.dtype, is_one: bool, decoding: bool, most_tokens: int
) -> None:
    pool = PackedPool(SHAPE, 1024, 1, dtype, CPU)
    capacity = PoolLora.work_capacity(most_tokens, 64, decoding=decoding)
    work = torch.zeros(capacity, dtype=torch.int32)
    lora = PoolLora(pool, UnpaddedForm(), work, most_tokens, num_sms=1, decoding=decoding)
    assert (lora.ways(1) == lora.ways(most_tokens)) is is_one


class RecordedWaits(Transfer):
    """A transfer of nothing: which layers were waited for."""

    def __init__(self) -> None:
        super().__init__(open_lane(CPU), (), LayerOrder().groups(SHAPE.num_layers))
        self.layers: list[int] = []

    def wait_for_layers(self, layers: Iterable[int]) -> None:
        self.layers += layers


def test_every_projection_waits_for_its_layer_also_those_that_no_adapter_changes() -> None:
    lora, work = make_lora(UnpaddedForm(), decoding=False)
    segments = make_segments([0, 1], 3)
    way = lora.choose(segments, 6)
    lora.write_work(work.numpy(), segments, way)
    waits = RecordedWaits()
    context = dataclasses.replace(lora.context(way), groups=frozenset({1}), gates=(waits,))
    for layer in range(SHAPE.num_layers):
        for modules in FUSED_MODULES:
            x = torch.randn(6, SHAPE.module_shape(modules[0])[0])
            y = torch.randn(6, sum(SHAPE.module_shape(module)[1] for module in modules))
            before = y.clone()
            assert not context.begin(layer, modules, x)
            context.add(layer, modules, x, y)
            assert torch.equal(y, before) == (modules != FUSED_MODULES[1])
    assert waits.layers == [layer for layer in range(SHAPE.num_layers) for _ in FUSED_MODULES]
