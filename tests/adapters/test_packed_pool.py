"""What is packed, loaded, moved and evicted is computed as the weights it came from."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from caraserve_cli.adapters import packed_pool
from caraserve_cli.adapters.copy_lane import Arrival, open_lane
from caraserve_cli.adapters.layer_order import LayerOrder
from caraserve_cli.adapters.packed_pool import PackedPool
from caraserve_cli.adapters.packing import LoraForm, Packer, PaddedForm, UnpaddedForm, fused_groups
from caraserve_cli.adapters.weights import AdapterWeights, LoraPair
from caraserve_cli.core import FUSED_MODULES, LORA_MODULES, AdapterInfo, BaseShape
from caraserve_cli.engine.residency import AdapterResidency
from caraserve_cli.errors import AdapterError
from caraserve_cli.step_plan import AdapterEviction, AdapterMove
from caraserve_kernels.lora_linear import LoraPart, add_lora_reference
from caraserve_kernels.lora_pool import DECODE_CONFIG, PooledLora
from caraserve_kernels.lora_work import build_work
from tests.adapters.contents import content_of

CPU = torch.device("cpu")
SHAPE = BaseShape(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    vocab_size=10,
)
CAPACITY_BYTES = 256 * 1024


def make_weights(name: str, lora_rank: int, modules: tuple[str, ...]) -> AdapterWeights:
    generator = torch.Generator().manual_seed(lora_rank)
    pairs = {}
    for layer in range(SHAPE.num_layers):
        for module in modules:
            width_in, width_out = SHAPE.module_shape(module)
            pairs[layer, module] = LoraPair(
                torch.randn(lora_rank + layer, width_in, generator=generator),
                torch.randn(lora_rank + layer, width_out, generator=generator),
                torch.randn(width_out, generator=generator) if lora_rank % 2 else None,
            )
    return AdapterWeights(name, pairs)


FORMS: list[LoraForm] = [UnpaddedForm(), PaddedForm(11)]


def packed(weights: AdapterWeights, form: LoraForm = FORMS[0]) -> AdapterWeights:
    return Packer(SHAPE, form, pinned=False).pack(weights)


def assert_computed(pool: PackedPool, adapters: dict[int, AdapterWeights], form: LoraForm = FORMS[0]) -> None:
    """One token of each slot, in every layer and group, against the weights as they were before packing."""
    pool.start_copies()
    pool.transfers.wait()
    slots = sorted(adapters)
    work = torch.zeros(4096, dtype=torch.int32)
    segments = torch.tensor([[slot, token, 1] for token, slot in enumerate(slots)]).numpy()
    padding = form.padding(pool.largest_ranks[slots])
    build_work(work.numpy(), segments, pool.stacked_rows, DECODE_CONFIG.tiling, padding)
    h = torch.full((1, len(slots), 3, 64), torch.nan)
    lora = PooledLora(pool.groups, pool.weights, pool.table, work, h, DECODE_CONFIG, num_sms=1)
    for layer in range(SHAPE.num_layers):
        for index, modules in enumerate(FUSED_MODULES):
            x = torch.randn(len(slots), SHAPE.module_shape(modules[0])[0])
            y = torch.randn(len(slots), sum(SHAPE.module_shape(module)[1] for module in modules))
            parts = [parts_of(adapters[slot], layer, modules) for slot in slots]
            expected = add_lora_reference(x, y, parts, range(len(slots)))
            lora.add(layer, index, x, y)
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def parts_of(weights: AdapterWeights, layer: int, modules: tuple[str, ...]) -> list[LoraPart]:
    parts, column = [], 0
    for module in modules:
        if pair := weights.pairs.get((layer, module)):
            parts.append(LoraPart(pair.a, pair.b_rows, pair.bias, column))
        column += SHAPE.module_shape(module)[1]
    return parts


def test_packing_keeps_the_weights_and_adds_only_gaps() -> None:
    weights = make_weights("a", 5, ("q_proj", "v_proj", "down_proj"))
    result = packed(weights)
    assert result.packed is not None
    assert content_of(result) == content_of(weights)
    assert result.num_bytes == result.packed.blob.nbytes
    gaps_bytes = 64 * 4 * 3 * len(weights.pairs)
    assert weights.num_bytes <= result.num_bytes <= weights.num_bytes + gaps_bytes
    for key, pair in weights.pairs.items():
        for mine, theirs in zip(result.pairs[key].tensors, pair.tensors, strict=True):
            assert torch.equal(mine, theirs)
            assert mine.untyped_storage().data_ptr() == result.packed.blob.untyped_storage().data_ptr()


def test_a_padded_pool_takes_the_same_for_every_rank() -> None:
    form = PaddedForm(32)
    sizes = {packed(make_weights("a", lora_rank, ("q_proj",)), form).num_bytes for lora_rank in (2, 8, 30)}
    assert len(sizes) == 1


def test_the_padding_is_zero() -> None:
    """It is multiplied: whatever else it held would be added."""
    result = packed(make_weights("a", 5, ("q_proj", "down_proj")), PaddedForm(7))
    assert result.packed is not None
    for view in (tensor for pair in result.pairs.values() for tensor in pair.tensors):
        view.zero_()
    assert not result.packed.blob.any()


@pytest.mark.parametrize("padded_rank", [0, 513])
def test_a_padded_form_that_the_kernels_have_no_room_for(padded_rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank {padded_rank}; it must be 1 to 512"):
        PaddedForm(padded_rank)


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("buffer_bytes", [256, 64 * 2**20], ids=["small pieces", "one piece"])
def test_load_move_evict(form: LoraForm, buffer_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_pool, "MOVE_BUFFER_BYTES", buffer_bytes)
    pool = PackedPool(SHAPE, CAPACITY_BYTES, 4, torch.float32, CPU)
    pool.weights.fill_(torch.nan)
    first = packed(make_weights("first", 3, ("q_proj", "v_proj", "o_proj")), form)
    second = packed(make_weights("second", 8, ("k_proj", "gate_proj", "down_proj")), form)
    pool.load(2, first, offset_bytes=512)
    pool.load(0, second, offset_bytes=64 * 1024)
    assert_computed(pool, {2: first, 0: second}, form)
    assert pool.largest_ranks.tolist() == [9, 0, 4, 0], "of the second layer"
    # Down by less than its own size: the two ranges overlap.
    pool.move(AdapterMove(0, 64 * 1024, 64 * 1024 - 1024, second.num_bytes))
    assert_computed(pool, {2: first, 0: second}, form)
    pool.evict(2)
    assert pool.largest_ranks.tolist() == [9, 0, 0, 0]
    # Moved twice before anything reads it: once, from where it was.
    pool.move(AdapterMove(0, 63 * 1024, 62 * 1024, second.num_bytes))
    pool.move(AdapterMove(0, 62 * 1024, 60 * 1024, second.num_bytes))
    assert_computed(pool, {0: second}, form)
    # What has not been copied in yet only changes where it goes.
    pool.load(1, first, offset_bytes=1024)
    pool.weights[: 1024 // 4 + first.num_bytes // 4] = torch.nan
    pool.move(AdapterMove(1, 1024, 256, first.num_bytes))
    assert_computed(pool, {1: first, 0: second}, form)
    pool.evict(1)
    pool.load(2, packed(make_weights("third", 4, ("up_proj",)), form), offset_bytes=0)
    assert_computed(pool, {2: make_weights("third", 4, ("up_proj",)), 0: second}, form)
    assert_computed(pool, {2: make_weights("third", 4, ("up_proj",))}, form)
    assert pool.largest_ranks.tolist() == [9, 0, 5, 0]


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_planned_ends_where_it_was_planned(seed: int) -> None:
    """Several loads a plan, with all that they evict and move, as the residency plans them."""
    chance = random.Random(seed)
    shapes = [(lora_rank, LORA_MODULES[: chance.randint(1, 7)]) for lora_rank in range(1, 22)]
    adapters = {
        str(index): packed(make_weights(str(index), lora_rank, tuple(modules)))
        for index, (lora_rank, modules) in enumerate(shapes)
    }
    infos = {
        name: AdapterInfo(
            name=name, lora_rank=weights.lora_rank, num_bytes=weights.num_bytes, identity=name.encode()
        )
        for name, weights in adapters.items()
    }
    largest_bytes = max(info.num_bytes for info in infos.values())
    residency = AdapterResidency(int(1.7 * largest_bytes), 9)
    pool = PackedPool(SHAPE, residency.capacity_bytes, 9, torch.float32, CPU)
    placed: dict[int, tuple[AdapterWeights, int]] = {}
    num_moves = 0
    for _ in range(40):
        used: list[str] = []
        for name in chance.sample(sorted(adapters), 4):
            if not residency.can_acquire(infos[name]):
                continue
            used.append(name)
            for op in residency.acquire(infos[name]).pool_ops:
                if isinstance(op, AdapterEviction):
                    pool.evict(op.adapter_slot)
                    del placed[op.adapter_slot]
                elif isinstance(op, AdapterMove):
                    num_moves += 1
                    pool.move(op)
                    placed[op.adapter_slot] = placed[op.adapter_slot][0], op.to_offset_bytes
                else:
                    pool.load(op.adapter_slot, adapters[op.adapter], op.offset_bytes)
                    placed[op.adapter_slot] = adapters[op.adapter], op.offset_bytes
        pool.start_copies()
        pool.transfers.wait()
        for adapter_slot, (weights, offset_bytes) in placed.items():
            assert weights.packed is not None
            first = offset_bytes // pool.weights.itemsize
            extent = pool.weights[first:][: weights.packed.blob.numel()]
            assert torch.equal(extent, weights.packed.blob)
            table = torch.from_numpy(weights.packed.layout.placed(first))
            assert torch.equal(pool.table[adapter_slot], table)
        for name in used:
            residency.release(name)
    assert num_moves > 5


def test_a_rank_that_the_kernels_have_no_room_for_is_refused() -> None:
    packed(make_weights("large", 511, ("q_proj",)))
    with pytest.raises(AdapterError, match=r"'large'.*rank 513.*up to 512"):
        packed(make_weights("large", 512, ("q_proj",)))  # its second layer has one row more


def test_groups_are_the_decoders() -> None:
    assert [group.modules for group in fused_groups(SHAPE)] == list(FUSED_MODULES)
    assert fused_groups(SHAPE)[0].out_widths == (32, 16, 16)


class _LaneLog:
    """A lane that notes what is asked of it."""

    waiter = 0

    def __init__(self) -> None:
        self._lane, self.link = open_lane(CPU), None
        self.num_waits = self.num_copies = 0

    def copy(self, pieces: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Arrival:
        self.num_copies += 1
        return self._lane.copy(pieces)

    def come_after_current_work(self) -> None:
        self.num_waits += 1


@pytest.mark.parametrize(
    ("read_in", "ended", "waits"), [(None, 0, 0), (1, 1, 0), (1, 0, 1), (2, 1, 1), (1, 2, 0)]
)
def test_copies_wait_for_steps_that_still_read_what_has_left(
    read_in: int | None, ended: int, waits: int
) -> None:
    """The adapter in slot 0 leaves after two steps, of which `ended` have ended."""
    lane = _LaneLog()
    pool = PackedPool(SHAPE, CAPACITY_BYTES, 2, torch.float32, CPU, lane)
    weights = packed(make_weights("a", 3, ("q_proj",)))
    pool.load(0, weights, 0)
    pool.start_copies()
    for step in (1, 2):
        assert pool.note_step(np.array([0] if step == read_in else [1])) == step
    pool.note_ended(ended)
    pool.evict(0)
    pool.load(1, weights, 0)
    pool.start_copies()
    assert lane.num_waits == waits


def test_copies_wait_for_moves() -> None:
    lane = _LaneLog()
    pool = PackedPool(SHAPE, CAPACITY_BYTES, 2, torch.float32, CPU, lane)
    weights = packed(make_weights("a", 3, ("q_proj",)))
    pool.load(0, weights, 4096)
    pool.start_copies()
    pool.move(AdapterMove(0, 4096, 0, weights.num_bytes))
    pool.load(1, weights, 8192)
    pool.start_copies()
    assert lane.num_waits == 1


@pytest.mark.parametrize(("in_turn", "num_transfers"), [(False, 1), (True, 2)])
def test_adapters_are_copied_together_or_in_turn(in_turn: bool, num_transfers: int) -> None:
    pool = PackedPool(SHAPE, CAPACITY_BYTES, 2, torch.float32, CPU)
    weights = packed(make_weights("a", 3, ("q_proj",)))
    for adapter_slot in (1, 0):
        pool.load(adapter_slot, weights, 8192 * adapter_slot, LayerOrder(in_turn=in_turn))
    pool.start_copies()
    gates = pool.gates([1, 0])
    assert len(gates) == num_transfers
    gates[0].begin()
    assert pool.has_arrived(1)
    assert pool.has_arrived(0) != in_turn


@pytest.mark.parametrize("in_turn", [False, True])
def test_first_layers_of_those_together_do_not_wait_to_be_waited_for(in_turn: bool) -> None:
    lane = _LaneLog()
    pool = PackedPool(SHAPE, CAPACITY_BYTES, 2, torch.float32, CPU, lane)
    weights = packed(make_weights("a", 3, ("q_proj",)))
    for adapter_slot in (0, 1):
        pool.load(adapter_slot, weights, 8192 * adapter_slot, LayerOrder(in_turn=in_turn))
    pool.start_copies()
    assert lane.num_copies == (0 if in_turn else 1)
    pool.transfers.begin()
    num_groups = len(LayerOrder().groups(SHAPE.num_layers))
    assert lane.num_copies == num_groups * (2 if in_turn else 1)


def test_what_a_step_beside_waits_for_comes_behind_what_the_others_wait_for() -> None:
    """And is a transfer of its own, though it was loaded first: they would wait for it too."""
    lane = _LaneLog()
    pool = PackedPool(SHAPE, CAPACITY_BYTES, 3, torch.float32, CPU, lane)
    weights = packed(make_weights("a", 3, ("q_proj",)))
    for adapter_slot in (0, 1, 2):
        pool.load(adapter_slot, weights, 4096 * adapter_slot, is_beside=adapter_slot == 0)
    pool.start_copies()
    assert pool.has_arrived(1)
    assert pool.has_arrived(2)
    assert not pool.has_arrived(0)
    assert lane.num_copies == len(LayerOrder().groups(SHAPE.num_layers)) + 1


def test_what_a_failed_launch_left_is_not_copied_over_what_comes_after() -> None:
    """Opened, never begun, and evicted; then another adapter takes its place."""
    pool = PackedPool(SHAPE, CAPACITY_BYTES, 2, torch.float32, CPU)
    first, second = (packed(make_weights("a", lora_rank, ("q_proj",))) for lora_rank in (3, 4))
    pool.load(0, first, 0)
    pool.start_copies()
    pool.evict(0)
    pool.load(1, second, 0)
    pool.start_copies()
    (gate,) = pool.gates([1])
    gate.wait()
    pool.transfers.begin()
    assert second.packed is not None
    blob = second.packed.blob
    assert torch.equal(pool.weights[: blob.numel()], blob)
