"""What steps find where the GPU's inputs are, on the CPU, where copies are done when they are queued."""

from __future__ import annotations

import torch

from caraserve_cli.engine.gpu_inputs import GpuInputs
from caraserve_cli.engine.step_batch import StepBatch
from caraserve_cli.step_plan import ScheduledChunk
from tests.engine.test_step_batch import BLOCK_TOKENS, make_sequence


def test_block_tables_are_those_of_the_step_whatever_was_sent_before() -> None:
    inputs = GpuInputs(8, 4, 6, 16, torch.device("cpu"))
    sequences = [make_sequence(name, 9, None, 3) for name in "abc"]
    for held in ([[5, 6, 7], [1, 2, 3]], [[5, 6, 7], [1, 2, 3]], [[8]], [[5, 6, 7], [1, 2, 4]], [[5, 6, 7]]):
        for sequence, blocks in zip(sequences, held, strict=False):
            sequence.block_table = blocks
        decoding = [
            ScheduledChunk(each, len(each.block_table) - 1, 1, True) for each in sequences[: len(held)]
        ]
        inputs.begin()
        inputs.send(StepBatch.build(decoding, BLOCK_TOKENS, {}), 0, None, 0)
        width = len(held[0])
        assert inputs.block_tables[: len(held), :width].tolist() == held
