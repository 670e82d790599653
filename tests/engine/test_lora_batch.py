"""Which tokens are stacked and which are not changes nothing: every way gives the reference's sums."""

from __future__ import annotations

import pytest
import torch

from caraserve_cli.adapters.device_pool import DevicePool
from caraserve_cli.adapters.weights import AdapterWeights, LoraPair
from caraserve_cli.core import FUSED_MODULES, BaseShape
from caraserve_cli.engine.lora_batch import MOST_MEMBERS, STACKABLE_ELEMENTS, AdapterSegment, LoraBatcher
from caraserve_kernels.lora_linear import add_lora_reference

SHAPE = BaseShape(
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    vocab_size=10,
)
CPU = torch.device("cpu")


def make_weights(lora_rank: int, seed: int, modules: tuple[str, ...]) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for layer in range(SHAPE.num_layers):
        for module in modules:
            width_in, width_out = SHAPE.module_shape(module)
            a = torch.randn(lora_rank, width_in, generator=generator)
            b_rows = torch.randn(lora_rank, width_out, generator=generator)
            bias = torch.randn(width_out, generator=generator) if seed % 2 else None
            pairs[layer, module] = LoraPair(a, b_rows, bias)
    return AdapterWeights(f"adapter {seed}", pairs)


class Batch:
    """A pool and its batcher, loaded and evicted together as the runner does it."""

    def __init__(self) -> None:
        self.pool = DevicePool(SHAPE, CPU)
        self.batcher = LoraBatcher(SHAPE, self.pool, CPU)

    def load(self, adapter_slot: int, weights: AdapterWeights) -> None:
        self.pool.load(adapter_slot, weights)
        self.batcher.add(adapter_slot)

    def evict(self, adapter_slot: int) -> None:
        self.batcher.remove(adapter_slot)
        self.pool.evict(adapter_slot)

    def assert_right(self, num_tokens: dict[int, int], num_plain: int = 2) -> None:
        """Each slot with so many tokens, and tokens without an adapter at the end."""
        slots = sorted(num_tokens, key=self.batcher.order)
        owners = [slot for slot in slots for _ in range(num_tokens[slot])]
        segments = [AdapterSegment(slot, owners.index(slot), num_tokens[slot]) for slot in slots]
        step = self.batcher.begin(segments)
        for layer in range(SHAPE.num_layers):
            for modules in FUSED_MODULES:
                total = len(owners) + num_plain
                # Sums of about ten, of which float32 rounds off far less than 1e-4.
                x = torch.randn(total, SHAPE.module_shape(modules[0])[0]) / 8
                y = torch.randn(total, sum(SHAPE.module_shape(module)[1] for module in modules))
                adapters = [self.pool[slot].parts.get((layer, modules), ()) for slot in slots]
                indices = [slots.index(slot) for slot in owners] + [-1] * num_plain
                expected = add_lora_reference(x, y, adapters, indices)
                step.add(layer, modules, x, y)
                torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens_each", [1, 3, 200], ids=["decode", "few", "prefill"])
def test_mixed_ranks_and_modules(tokens_each: int) -> None:
    batch = Batch()
    modules = (("q_proj", "v_proj"), ("k_proj", "down_proj"), ("o_proj", "gate_proj", "up_proj"))
    for slot, lora_rank in enumerate((1, 5, 16, 64, 300)):
        batch.load(slot, make_weights(lora_rank, slot, modules[slot % 3]))
    batch.assert_right(dict.fromkeys(range(5), tokens_each))
    batch.assert_right({0: 1, 3: tokens_each})
    batch.assert_right({2: tokens_each}, num_plain=0)


def test_a_slot_that_changes_its_content_is_computed_anew() -> None:
    batch = Batch()
    for slot in range(3):
        batch.load(slot, make_weights(4, slot, ("q_proj", "v_proj")))
    batch.assert_right({0: 1, 1: 1, 2: 1})
    batch.evict(1)
    batch.assert_right({0: 2, 2: 1})
    batch.load(1, make_weights(9, 7, ("k_proj",)))
    batch.assert_right({0: 1, 1: 1, 2: 1})


def test_members_without_tokens_are_padding() -> None:
    batch = Batch()
    for slot in range(4):
        batch.load(slot, make_weights(4, slot, ("q_proj", "v_proj")))
    batch.assert_right({0: 2, 1: 1, 3: 2})
    batch.assert_right({1: 1, 3: 5}, num_plain=0)


def test_groups_are_bounded_and_of_similar_ranks() -> None:
    batch = Batch()
    for slot in range(MOST_MEMBERS + 1):
        batch.load(slot, make_weights(4, slot, ("q_proj",)))
    batch.load(90, make_weights(17, 90, ("q_proj",)))
    batch.load(91, make_weights(64, 91, ("q_proj",)))
    groups = [batch.batcher.order(slot)[0] for slot in (0, MOST_MEMBERS - 1, MOST_MEMBERS, 90, 91)]
    assert groups == [0, 0, 1, 2, 2]


def test_large_adapters_are_never_padded() -> None:
    batch = Batch()
    for slot in range(2):
        batch.load(slot, make_weights(STACKABLE_ELEMENTS // SHAPE.hidden_size + 1, slot, ("q_proj",)))
    assert {batch.batcher.order(slot)[0] for slot in range(2)} == {0, 1}
