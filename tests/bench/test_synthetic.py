"""Synthetic adapters are real ones in all but their content, and cases share them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from caraserve_cli.adapters.host_store import HostStore
from caraserve_cli.adapters.packing import Packer, UnpaddedForm
from caraserve_cli.bench.engine_case import EngineCase
from caraserve_cli.bench.synthetic import adapters_of, make_requests
from caraserve_cli.fleet.options import ReplicaOptions
from caraserve_cli.fleet.synthetic_adapter import SyntheticAdapter
from caraserve_cli.fleet.synthetic_adapters import SyntheticAdapters
from tests.adapters.bases import shape_of, tiny_llama

SHAPE = shape_of(tiny_llama())
CASE = EngineCase(
    name="case",
    num_requests=5,
    num_adapters=3,
    lora_ranks=(4, 2),
    modules=("v_proj", "q_proj"),
    prompt_tokens=9,
    output_tokens=7,
    cold=False,
    peft=False,
    options=ReplicaOptions(base="any"),
)


def test_ranks_go_round_and_equal_sizes_are_told_apart() -> None:
    adapters = adapters_of(CASE)
    assert [(each.lora_rank, each.copy) for each in adapters] == [(4, 0), (2, 0), (4, 1)]
    assert all(each.modules == ("q_proj", "v_proj") for each in adapters), "in the forward pass's order"
    assert len({each.name for each in adapters}) == 3


def test_cases_share_what_has_equal_sizes() -> None:
    others = adapters_of(dataclasses.replace(CASE, num_adapters=1, lora_ranks=(2,)))
    assert set(others) < set(adapters_of(CASE))
    other_modules = adapters_of(dataclasses.replace(CASE, modules=("q_proj",)))
    assert not set(other_modules) & set(adapters_of(CASE))


@pytest.mark.parametrize("packed", [False, True])
def test_each_adapter_has_its_sizes_and_its_own_memory(packed: bool) -> None:
    synthetic = SyntheticAdapters(adapters_of(CASE), packed=packed)
    packer = Packer(SHAPE, UnpaddedForm(), pinned=False) if packed else None
    source = synthetic.source
    store = HostStore(source.library, SHAPE, torch.float32, 10**9, packer, source.load, source.outline)
    places: set[int] = set()
    for adapter in adapters_of(CASE):
        weights = store.acquire(adapter.name)
        assert store.describe(adapter.name).num_bytes == weights.num_bytes
        assert list(weights.pairs) == [(layer, m) for layer in range(2) for m in ("q_proj", "v_proj")]
        assert sum(pair.num_bytes for pair in weights.pairs.values()) == 4 * adapter.num_weights(SHAPE)
        for (_, module), pair in weights.pairs.items():
            in_width, out_width = SHAPE.module_shape(module)
            assert pair.a.shape == (adapter.lora_rank, in_width)
            assert pair.b_rows.shape == (adapter.lora_rank, out_width)
            assert pair.a.std() > 0
        places.add(next(iter(weights.pairs.values())).a.data_ptr())
    assert len(places) == 3
    identities = {store.describe(name).identity for name in synthetic.names}
    assert len(identities) == 3, "they share no prefix though two have equal content"
    store.check_integrity()


@pytest.mark.parametrize(("num_adapters", "largest"), [(3, 4), (0, 0)])
def test_the_largest_rank_is_known_without_making_any(num_adapters: int, largest: int) -> None:
    adapters = adapters_of(dataclasses.replace(CASE, num_adapters=num_adapters))
    source = SyntheticAdapters(adapters, packed=True).source
    assert source.find_largest_rank(source.library, SHAPE, 256) == largest


def test_what_is_asked_for_again_is_the_same() -> None:
    adapter = SyntheticAdapter(3, ("o_proj",), 0)
    synthetic = SyntheticAdapters([adapter], packed=False)
    before = synthetic.load(adapter.name, Path("none"), SHAPE, torch.float32)
    synthetic.forget_content()
    after = synthetic.load(adapter.name, Path("none"), SHAPE, torch.float32)
    assert torch.equal(before.pairs[1, "o_proj"].a, after.pairs[1, "o_proj"].a)


def test_requests_take_the_adapters_in_turn_and_no_two_runs_share_a_prompt() -> None:
    first, second = (make_requests(CASE, run, vocab_size=50) for run in (1, 2))
    names = [adapter.name for adapter in adapters_of(CASE)]
    assert [request.adapter for request in first] == [*names, *names[:2]]
    assert len({request.prompt_token_ids for request in (*first, *second)}) == 10
    for request in first:
        assert len(request.prompt_token_ids) == 9
        assert set(request.prompt_token_ids) <= set(range(50))
        assert (request.sampling.max_tokens, request.sampling.ignore_eos) == (7, True)
    alone = make_requests(dataclasses.replace(CASE, num_adapters=0), 1, vocab_size=50)
    assert {request.adapter for request in alone} == {None}
