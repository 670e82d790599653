"""LoRA kernels: the paper's two forms, and its example of why the form decides who takes a request."""

from __future__ import annotations

import pytest

from caraserve_cli.errors import ProfileError
from caraserve_cli.perf.least_squares import FitQuality
from caraserve_cli.perf.lora_kernels import LoraKernelModel

BATCHES = [(8,) * 4, (8, 8, 64), (64,) * 8, (16, 32), (128, 8, 8, 8)]


@pytest.mark.parametrize("is_padded", [True, False])
def test_a_known_kernel_is_found_again(is_padded: bool) -> None:
    def true_ms(lora_ranks: tuple[int, ...]) -> float:
        return 0.004 * (len(lora_ranks) * max(lora_ranks) if is_padded else sum(lora_ranks)) + 0.3

    model = LoraKernelModel.fit(BATCHES, [true_ms(each) for each in BATCHES], is_padded=is_padded)
    assert model.batch_ms((32, 8, 8)) == pytest.approx(true_ms((32, 8, 8)))
    assert model.batch_ms(()) == 0


def test_the_form_decides_which_server_keeps_36_ms() -> None:
    """Paper, section 2: a request of rank 64 to a server with 24 × rank 32 or to one with 16 × rank 64.
    Padded, the first would compute 25 × 64; unpadded, the second has the larger sum."""
    quality = FitQuality(1, 0, 9)
    small, large = (32,) * 24, (64,) * 16
    padded = LoraKernelModel(True, 0.01, 22, quality)
    assert padded.batch_ms((*small, 64)) > 36 >= padded.batch_ms((*large, 64))
    unpadded = LoraKernelModel(False, 0.015, 22, quality)
    assert unpadded.batch_ms((*small, 64)) <= 36 < unpadded.batch_ms((*large, 64))


def test_points_of_the_other_form_are_refused() -> None:
    batches = [(8,) * 15 + (128,), (64,) * 2, (8,) * 32, (128, 8), (64,) * 16]
    unpadded_ms = [0.01 * sum(each) for each in batches]
    with pytest.raises(ProfileError, match="padded LoRA kernel"):
        LoraKernelModel.fit(batches, unpadded_ms, is_padded=True)
