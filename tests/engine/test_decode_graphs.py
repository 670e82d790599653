"""Which sizes decoding steps are padded to."""

from __future__ import annotations

import torch

from caraserve_cli.engine.decode_graphs import DecodeGraphs, padded_size, padded_sizes


def test_every_batch_fits_and_little_is_wasted() -> None:
    for max_sequences in (1, 3, 100, 256, 1000):
        for num_sequences in range(1, max_sequences + 1):
            size = padded_size(num_sequences, max_sequences)
            assert num_sequences <= size <= max_sequences
            assert size <= 2 * num_sequences if num_sequences < 8 else size < num_sequences + 32


def test_there_are_few_sizes() -> None:
    assert len({padded_size(count, 256) for count in range(1, 257)}) <= 20


def test_the_sizes_are_those_that_steps_are_padded_to() -> None:
    assert padded_sizes(5) == [1, 2, 4, 5]
    assert set(padded_sizes(256)) == {padded_size(count, 256) for count in range(1, 257)}


def test_without_graphs_each_step_is_computed_as_it_comes() -> None:
    graphs = DecodeGraphs(lambda size, variant: torch.full((size,), len(str(variant))), torch.device("cpu"))
    graphs.prepare(2, None)
    assert graphs.run(2, None).tolist() == [4, 4]
    assert graphs.run(3, "way").tolist() == [3, 3, 3]


def test_a_size_is_its_own_size() -> None:
    sizes = {padded_size(count, 256) for count in range(1, 257)}
    assert all(padded_size(size, 256) == size for size in sizes)
