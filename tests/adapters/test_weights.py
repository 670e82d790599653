"""The canonical form: its sizes, and its outline, which tells them without the weights."""

from __future__ import annotations

import torch

from caraserve_cli.adapters.weights import AdapterWeights, LoraPair
from tests.adapters.bases import shape_of, tiny_llama

SHAPE = shape_of(tiny_llama())


def pair(module: str, lora_rank: int, *, bias: bool = False) -> LoraPair:
    in_width, out_width = SHAPE.module_shape(module)
    return LoraPair(
        torch.ones(lora_rank, in_width),
        torch.ones(lora_rank, out_width),
        torch.ones(out_width) if bias else None,
    )


def test_sizes() -> None:
    pairs = {(0, "q_proj"): pair("q_proj", 2), (1, "v_proj"): pair("v_proj", 3, bias=True)}
    weights = AdapterWeights("a", pairs)
    # 32 wide, and half of that for the values.
    assert weights.num_bytes == 4 * (2 * (32 + 32) + 3 * (32 + 16) + 16)
    assert weights.lora_rank == 3
    outline = weights.outline
    assert (outline.name, outline.lora_rank) == ("a", 3)
    assert outline.lora_ranks == {(0, "q_proj"): 2, (1, "v_proj"): 3}
    assert outline.biased == {(1, "v_proj")}
    assert 4 * outline.num_elements(SHAPE) == weights.num_bytes
