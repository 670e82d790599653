from __future__ import annotations

import pytest
import torch

from caraserve_cli.model import rope as module
from caraserve_cli.model.rope import BASE_VARIANT, Rope, Rotation
from caraserve_cli.model.rope_config import RopeConfig
from tests.model.tiny import CPU

HEAD_DIM = 8
CONTEXT = 32


def make_rope(kind: str, **parameters: float | list[float]) -> Rope:
    config = RopeConfig(
        kind=kind,
        parameters={"rope_type": kind, "rope_theta": 10000.0, **parameters},
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
    )
    return Rope(config, torch.float32, CPU)


def make_longrope() -> Rope:
    return make_rope(
        "longrope",
        short_factor=[1.0] * 4,
        long_factor=[2.0] * 4,
        original_max_position_embeddings=16,
        factor=2.0,
    )


def test_variants_follow_the_prompt_length() -> None:
    assert make_rope("default").variant(1000) == BASE_VARIANT
    dynamic = make_rope("dynamic", factor=2.0)
    assert [dynamic.variant(n) for n in (CONTEXT, CONTEXT + 1, 50)] == [BASE_VARIANT, CONTEXT + 1, 50]
    longrope = make_longrope()
    assert [longrope.variant(n) for n in (16, 17, 32)] == [BASE_VARIANT, 1, 1]


def test_rotation_by_hand() -> None:
    rope = make_rope("default")
    x = torch.randn(3, 2, HEAD_DIM, dtype=torch.float32)
    rotated = rope.rotation(torch.tensor([0, 1, 5])).apply(x)
    for token, position in enumerate((0, 1, 5)):
        angle = position / 10000.0 ** (torch.arange(0, HEAD_DIM, 2) / HEAD_DIM)
        first, second = x[token, :, :4], x[token, :, 4:]
        expected = torch.cat(
            (first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()), dim=-1
        )
        torch.testing.assert_close(rotated[token], expected)


def test_what_is_looked_up_is_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TABLE_PIECE", 10)
    positions = torch.tensor([31, 0, 9, 10, 20, 10], dtype=torch.int32)
    for rope in (make_rope("default"), make_longrope()):
        found, computed = Rotation.looked_up(rope.table(CONTEXT), positions), rope.rotation(positions)
        for ours, theirs in zip(found, computed, strict=True):
            assert torch.equal(ours, theirs)


def test_tokens_of_several_variants_are_rotated_as_each_alone() -> None:
    for rope in (make_rope("dynamic", factor=2.0), make_longrope()):
        prompt_lengths = (10, 40, 40, 50, 10)
        variants = torch.tensor([rope.variant(n) for n in prompt_lengths])
        positions = torch.tensor([3, 30, 31, 7, 0])
        together = rope.rotation(positions, variants)
        assert len(variants.unique()) > 1
        for token in range(5):
            alone = rope.rotation(positions[token : token + 1], variants[token : token + 1])
            torch.testing.assert_close(together.cos[token], alone.cos[0], rtol=0, atol=0)
            torch.testing.assert_close(together.sin[token], alone.sin[0], rtol=0, atol=0)


def test_no_variants_means_the_base_variant() -> None:
    rope = make_longrope()
    positions = torch.arange(5)
    implied, given = rope.rotation(positions), rope.rotation(positions, torch.zeros(5, dtype=torch.int64))
    assert torch.equal(implied.cos, given.cos)
    assert torch.equal(implied.sin, given.sin)
    long = rope.rotation(positions, torch.ones(5, dtype=torch.int64))
    assert not torch.equal(implied.sin, long.sin)


def test_rotations_have_the_dtype_of_the_run() -> None:
    config = RopeConfig(
        kind="default",
        parameters={"rope_type": "default", "rope_theta": 10000.0},
        head_dim=HEAD_DIM,
        max_position_embeddings=CONTEXT,
    )
    rotation = Rope(config, torch.bfloat16, CPU).rotation(torch.arange(4))
    assert rotation.cos.dtype == rotation.sin.dtype == torch.bfloat16
    assert rotation.cos.shape == rotation.sin.shape == (4, 1, HEAD_DIM)
