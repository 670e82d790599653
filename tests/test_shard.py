"""How sizes are cut: everything is somebody's, once."""

from __future__ import annotations

import dataclasses

import pytest

from caraserve_cli.core import LORA_MODULES, BaseShape
from caraserve_cli.errors import OptionError
from caraserve_cli.shard import WHOLE, Shard

SHAPE = BaseShape(
    num_layers=2,
    hidden_size=48,
    num_heads=12,
    num_kv_heads=6,
    head_dim=4,
    intermediate_size=96,
    vocab_size=259,
)


def elements(parts: list[slice]) -> list[int]:
    return [element for part in parts for element in range(part.start, part.stop)]


@pytest.mark.parametrize("tp_size", [1, 2, 3, 6])
@pytest.mark.parametrize("module", LORA_MODULES)
def test_a_module_is_cut_at_one_side_and_its_bias_added_once(module: str, tp_size: int) -> None:
    in_width, out_width = SHAPE.module_shape(module)
    shards = [Shard(index, tp_size) for index in range(tp_size)]
    inputs = [shard.inputs(module, in_width) for shard in shards]
    outputs = [shard.outputs(module, out_width) for shard in shards]
    is_cut_by_inputs = module in ("o_proj", "down_proj")
    cut, whole = (inputs, outputs) if is_cut_by_inputs else (outputs, inputs)
    assert elements(cut) == list(range(in_width if is_cut_by_inputs else out_width))
    assert {(part.start, part.stop) for part in whole} == {(0, out_width if is_cut_by_inputs else in_width)}
    assert elements([shard.bias(module, out_width) for shard in shards]) == list(range(out_width))
    for shard, own_inputs, own_outputs in zip(shards, inputs, outputs, strict=True):
        own = (own_inputs.stop - own_inputs.start, own_outputs.stop - own_outputs.start)
        assert own == shard.cut(SHAPE).module_shape(module)


@pytest.mark.parametrize("tp_size", [1, 2, 3, 64, 260])
def test_every_token_id_is_in_one_part_of_the_vocabulary(tp_size: int) -> None:
    shards = [Shard(index, tp_size) for index in range(tp_size)]
    assert elements([shard.vocabulary(259) for shard in shards]) == list(range(259))
    for shard in shards:
        own = shard.vocabulary(259)
        rows = shard.vocabulary_rows(259)
        assert own.stop - own.start <= rows
        assert own.start in (shard.tp_index * rows, 259), "where a process looks for its first row"


def test_query_heads_stay_with_their_key_heads() -> None:
    part = Shard(1, 3).cut(SHAPE)
    assert (part.num_heads, part.num_kv_heads, part.intermediate_size) == (4, 2, 32)
    assert (part.hidden_size, part.head_dim, part.vocab_size) == (48, 4, 259)
    assert WHOLE.cut(SHAPE) == SHAPE


@pytest.mark.parametrize(
    ("changes", "tp_size", "said"),
    [
        ({}, 4, "the base has 6 key/value heads, which 4 processes cannot share equally; use 1 or 2 or 3"),
        ({"num_heads": 13}, 2, "13 attention heads"),
        (
            {"intermediate_size": 97},
            2,
            "97 columns of the MLP, which 2 processes cannot share equally; use 1",
        ),
    ],
)
def test_what_does_not_divide_is_refused_by_name(changes: dict[str, int], tp_size: int, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Shard(0, tp_size).cut(dataclasses.replace(SHAPE, **changes))


def test_there_is_no_part_beyond_the_last() -> None:
    with pytest.raises(ValueError, match="process 2 of 2"):
        Shard(2, 2)
