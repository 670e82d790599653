"""The parts of an adapter that processes keep: together they are the adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caraserve_cli.adapters.adapter_share import AdapterShare
from caraserve_cli.adapters.loader import load_adapter
from caraserve_cli.adapters.packing import Packer, UnpaddedForm
from caraserve_cli.adapters.weights import AdapterWeights, ModuleKey
from caraserve_cli.errors import AdapterError
from caraserve_cli.shard import Shard
from tests.adapters.bases import shape_of, tiny_llama
from tests.adapters.peft_variants import VARIANTS, Variant, write_variant

SHAPE = shape_of(tiny_llama())
CHOSEN = [variant for variant in VARIANTS if variant.name in ("all-linear-r6", "lora-bias", "rank-pattern")]


def change_of(parts: list[AdapterWeights], key: ModuleKey) -> tuple[torch.Tensor, torch.Tensor]:
    """What the parts add to the whole module's weight, [out, in], and to its output."""
    in_width, out_width = SHAPE.module_shape(key[1])
    weight, bias = torch.zeros(out_width, in_width), torch.zeros(out_width)
    for index, part in enumerate(parts):
        shard, pair = Shard(index, len(parts)), part.pairs[key]
        outputs, inputs = shard.outputs(key[1], out_width), shard.inputs(key[1], in_width)
        weight[outputs, inputs] += pair.b_rows.t() @ pair.a
        if pair.bias is not None:
            bias[outputs] += pair.bias
    return weight, bias


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("variant", CHOSEN, ids=lambda variant: variant.name)
def test_parts_add_up(tmp_path: Path, variant: Variant, is_packed: bool) -> None:
    write_variant(tmp_path, variant, tiny_llama, seed=7)
    folder = tmp_path / variant.name
    whole = load_adapter(variant.name, folder, SHAPE, torch.float32)
    parts, sizes = [], set()
    for index in range(2):
        shard = Shard(index, 2)
        share, own_shape = AdapterShare(SHAPE, shard), shard.cut(SHAPE)
        outline = share.outline(variant.name, folder, own_shape)
        packed = None
        if is_packed:
            packed = Packer(own_shape, UnpaddedForm(), pinned=False).place(outline, torch.float32)
            for pair in packed.pairs.values():
                for tensor in pair.tensors:
                    tensor.fill_(torch.nan)  # whatever lay there before
        part = share.load(variant.name, folder, own_shape, torch.float32, packed and packed.pairs)
        parts.append(part)
        sizes.add(part.num_bytes if packed is None else packed.num_bytes)
    for key, pair in whole.pairs.items():
        weight, bias = change_of(parts, key)
        torch.testing.assert_close(weight, pair.b_rows.t() @ pair.a, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(bias, torch.zeros_like(bias) if pair.bias is None else pair.bias)
    assert len(sizes) == 1, "plans count on the same number of bytes everywhere"
    assert sizes.pop() < whole.num_bytes


def test_an_adapter_must_fit_the_whole_base(tmp_path: Path) -> None:
    write_variant(tmp_path, CHOSEN[0], tiny_llama, seed=7)
    own_shape = Shard(0, 2).cut(SHAPE)
    share = AdapterShare(own_shape, Shard(0, 2))  # as if the base were half as wide
    with pytest.raises(AdapterError, match="does not fit the base"):
        share.outline(CHOSEN[0].name, tmp_path / CHOSEN[0].name, own_shape)
