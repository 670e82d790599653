"""Graphs are captured whatever else the process has left behind."""

from __future__ import annotations

import gc
from collections.abc import Hashable, Iterator

import pytest
import torch

from caraserve_cli.engine.step_graphs import StepGraphs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def eager_collection() -> Iterator[None]:
    """A collection with almost every object that is made."""
    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    yield
    gc.set_threshold(*before)


class Adder:
    """Adds one to a buffer; makes objects on the way, as a decoder does."""

    def __init__(self) -> None:
        self.buffer = torch.zeros(64, device="cuda")
        self.graphs = StepGraphs(self.compute, 2, torch.device("cuda"))  # which refers to this: a cycle

    def compute(self, size: int, variant: Hashable, piece: int) -> None:
        garbage: list[object] = []
        for _ in range(50):
            garbage.append([garbage])
        self.buffer[:size].add_(10**piece)


def test_an_earlier_replicas_graphs_are_garbage_while_new_ones_are_captured() -> None:
    gc.disable()
    for _ in range(8):
        Adder().graphs.prepare(4, None)
    gc.enable()
    adder = Adder()
    for size in range(1, 9):
        adder.graphs.prepare(size, None)
    assert gc.isenabled()
    adder.buffer.zero_()
    adder.graphs.run(8, None)
    assert adder.buffer[:9].tolist() == [11.0] * 8 + [0.0]


def test_what_comes_before_a_piece_is_done_before_it() -> None:
    adder = Adder()
    adder.graphs.prepare(4, None)
    adder.buffer.zero_()
    adder.graphs.run(4, None, lambda piece: adder.buffer.mul_(2 + piece))
    assert adder.buffer[:4].tolist() == [1.0 * 3 + 10.0] * 4


def test_pieces_that_have_been_computed_are_left_out() -> None:
    adder = Adder()
    adder.graphs.prepare(4, None)
    adder.buffer.zero_()
    adder.graphs.run(4, None, pieces=[1])
    assert adder.buffer[:4].tolist() == [10.0] * 4


def test_variants_that_are_dropped_are_captured_anew_and_others_stay() -> None:
    adder = Adder()
    for variant in ("old", "new"):
        adder.graphs.prepare(4, variant)
    adder.graphs.drop(lambda variant: variant == "old")
    assert adder.graphs._graphs.keys() == {(4, "new")}
    for variant in ("old", "new"):
        adder.graphs.prepare(4, variant)
        adder.buffer.zero_()
        adder.graphs.run(4, variant)
        assert adder.buffer[:5].tolist() == [11.0] * 4 + [0.0]
