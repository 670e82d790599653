"""Steps computed piece by piece, and the sizes that they are padded to."""

from __future__ import annotations

import pytest
import torch

from caraserve_cli.engine.chunk_steps import AssistedWay, is_of_earlier_link
from caraserve_cli.engine.pool_lora import LoraWay
from caraserve_cli.engine.step_graphs import StepGraphs
from caraserve_cli.engine.step_sizes import (
    MAX_BESIDE_TOKENS,
    MAX_CHUNK_TOKENS,
    beside_sizes,
    chunk_sizes,
    decode_size,
    decode_sizes,
)
from caraserve_kernels.lora_pool import PREFILL_CONFIG


def test_every_batch_fits_and_little_is_wasted() -> None:
    for max_sequences in (1, 3, 100, 256, 1000):
        for num_sequences in range(1, max_sequences + 1):
            size = decode_size(num_sequences, max_sequences)
            assert num_sequences <= size <= max_sequences
            assert size <= 2 * num_sequences if num_sequences < 8 else size < num_sequences + 32


@pytest.mark.parametrize("max_tokens", [1, 17, 100, 1024, 2048])
def test_prompts_fit_and_little_is_wasted(max_tokens: int) -> None:
    sizes = chunk_sizes(max_tokens)
    assert sizes == sorted(sizes)
    assert sizes[-1] == min(max_tokens, MAX_CHUNK_TOKENS)
    for num_tokens in range(1, sizes[-1] + 1):
        size = next(size for size in sizes if size >= num_tokens)
        assert size < num_tokens + 16 or size <= 1.5 * num_tokens


@pytest.mark.parametrize("max_tokens", [1, 15, 16, 100, 512, 2048])
def test_beside_the_others_there_are_powers_of_two(max_tokens: int) -> None:
    sizes = beside_sizes(max_tokens)
    assert sizes == sorted(sizes)
    assert sizes[-1] == min(max_tokens, MAX_BESIDE_TOKENS)
    assert all(size == 1 << (size.bit_length() - 1) for size in sizes[:-1])


def test_there_are_few_sizes() -> None:
    assert len(decode_sizes(256)) <= 20
    assert len(chunk_sizes(8192)) <= 20
    assert len(beside_sizes(8192)) <= 6


def test_the_sizes_are_those_that_steps_are_padded_to() -> None:
    assert decode_sizes(5) == [1, 2, 4, 5]
    assert set(decode_sizes(256)) == {decode_size(count, 256) for count in range(1, 257)}
    assert all(decode_size(size, 256) == size for size in decode_sizes(256))


def test_without_graphs_each_step_is_computed_as_it_comes() -> None:
    log: list[object] = []
    graphs = StepGraphs(lambda *what: log.append(what), 3, torch.device("cpu"))
    graphs.prepare(2, None)
    assert log == []
    graphs.run(2, "way", log.append)
    assert log == [0, (2, "way", 0), 1, (2, "way", 1), 2, (2, "way", 2)]
    log.clear()
    graphs.run(2, "way", log.append, pieces=[2])
    graphs.run(2, "way", log.append, pieces=[])
    assert log == [2, (2, "way", 2)]


def test_graphs_of_the_machines_link_and_of_the_last_emulated_one_are_of_use() -> None:
    """A benchmark goes back and forth between both, and never comes back to an earlier emulated one."""
    way = LoraWay(PREFILL_CONFIG, frozenset({0}))
    variants = [None, way, *(AssistedWay(way, link) for link in (None, 4e9, 2e9))]
    assert [is_of_earlier_link(variant, 2e9) for variant in variants] == [False, False, False, True, False]
    assert not any(is_of_earlier_link(variant, None) for variant in variants)
