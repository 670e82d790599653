"""The canonical form: sizes, and a hash that follows the content and nothing else."""

from __future__ import annotations

import pytest
import torch

from caraserve_cli.adapters.weights import AdapterWeights, LoraPair, ModuleKey

KEY: ModuleKey = (0, "q_proj")


def pair(lora_rank: int = 2, *, bias: bool = False, fill: float = 1.0) -> LoraPair:
    return LoraPair(
        torch.full((lora_rank, 6), fill), torch.full((lora_rank, 4), fill), torch.ones(4) if bias else None
    )


def test_sizes() -> None:
    weights = AdapterWeights("a", {KEY: pair(2), (1, "v_proj"): pair(3, bias=True)})
    info = weights.info()
    assert info.num_bytes == 4 * ((2 + 3) * (6 + 4) + 4)
    assert info.lora_rank == 3
    assert (info.name, info.content_hash) == ("a", weights.content_hash)
    assert len(info.content_hash) == 16


def test_the_name_is_not_content() -> None:
    assert AdapterWeights("a", {KEY: pair()}).content_hash == AdapterWeights("b", {KEY: pair()}).content_hash


@pytest.mark.parametrize(
    "other",
    [
        {KEY: pair(fill=2.0)},
        {KEY: pair(3)},
        {KEY: pair(bias=True)},
        {(1, "q_proj"): pair()},
        {(0, "v_proj"): pair()},
        {KEY: pair(), (1, "q_proj"): pair()},
        {KEY: LoraPair(torch.ones(2, 4), torch.ones(2, 6))},
    ],
)
def test_all_else_is(other: dict[ModuleKey, LoraPair]) -> None:
    assert AdapterWeights("a", other).content_hash != AdapterWeights("a", {KEY: pair()}).content_hash


def test_sign_of_a_single_value_is_content() -> None:
    changed = pair()
    changed.b_rows[1, 3] = -1.0
    assert AdapterWeights("a", {KEY: changed}).content_hash != AdapterWeights("a", {KEY: pair()}).content_hash
